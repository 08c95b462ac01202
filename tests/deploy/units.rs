//! The units as systemd reads them, and what they promise.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::tools::find_tool;
use crate::{read, repository};

/// Exposure in tenths, as `systemd-analyze security` counts it: 1.6.
const EXPOSURE: u32 = 16;

#[test]
fn exposure_is_small() {
    let Some(analyze) = find_tool("units::exposure_is_small", "systemd-analyze") else {
        return;
    };
    for unit in ["systemd/turnix.service", "systemd/turnix@.service"] {
        let output = Command::new(&analyze)
            .args(["security", "--offline=true", "--no-pager"])
            .arg(format!("--threshold={EXPOSURE}"))
            .arg(repository(unit))
            .output()
            .expect("systemd-analyze");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            said.contains("Overall exposure level"),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "{unit}: {said}");
    }
}

#[test]
fn systemd_understands_every_line() {
    let Some(analyze) = find_tool("units::systemd_understands_every_line", "systemd-analyze")
    else {
        return;
    };
    let dir = tempfile::tempdir().expect("temporary directory");
    // It looks for the program, and for the unit that a socket belongs to.
    let program = env!("CARGO_BIN_EXE_turnix");
    let units = ["turnix.service", "turnix@.service", "turnix.socket"];
    for unit in units {
        let text = read(&format!("systemd/{unit}")).replace("/usr/bin/turnix", program);
        fs::write(dir.path().join(unit), text).expect("unit");
    }
    let drop_in = dir.path().join("turnix.service.d");
    fs::create_dir(&drop_in).expect("drop-in");
    fs::copy(
        repository("systemd/turnix.service.d/xdp.conf.example"),
        drop_in.join("xdp.conf"),
    )
    .expect("drop-in");
    for unit in ["turnix.service", "turnix@blue.service", "turnix.socket"] {
        let output = Command::new(&analyze)
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(dir.path().join(unit))
            .env("SYSTEMD_UNIT_PATH", format!("{}:", dir.path().display()))
            .output()
            .expect("systemd-analyze");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{unit}: {said}");
        // Other units of the host are none of ours.
        let ours: Vec<_> = (said.lines())
            .filter(|line| line.contains("turnix") || line.contains("xdp.conf"))
            .collect();
        assert!(ours.is_empty(), "{unit}: {ours:#?}");
    }
}

#[test]
fn instances_are_sandboxed_alike() {
    let common = |unit: &str| {
        let text = read(unit);
        let line = text.lines().find(|line| line.starts_with("# ---"));
        let line = line.unwrap_or_else(|| panic!("{unit}: no line of dashes"));
        text.split_once(line).expect("the line").1.to_owned()
    };
    let plain = common("systemd/turnix.service");
    assert!(plain.contains("SystemCallFilter="));
    assert_eq!(plain, common("systemd/turnix@.service"));
    // What the server is told that systemd keeps is what systemd keeps.
    let kept = (plain.lines()).find_map(|line| line.strip_prefix("FileDescriptorStoreMax="));
    let told = (plain.lines()).find_map(|line| line.strip_prefix("Environment=FDSTORE="));
    assert!(kept.is_some() && kept == told, "{kept:?}, {told:?}");
}

#[test]
fn the_user_and_its_files_are_made() {
    let test = "units::the_user_and_its_files_are_made";
    let (Some(sysusers), Some(tmpfiles)) = (
        find_tool(test, "systemd-sysusers"),
        find_tool(test, "systemd-tmpfiles"),
    ) else {
        return;
    };
    if !is_root() {
        println!("SKIPPED: {test}: needs root to give files away");
        return;
    }
    let root = tempfile::tempdir().expect("temporary directory");
    let etc = root.path().join("etc/turnix");
    fs::create_dir_all(&etc).expect("configuration");
    fs::copy(repository("conf/turnix.toml"), etc.join("turnix.toml")).expect("configuration");
    for (tool, arguments, file) in [
        (&sysusers, &[][..], "systemd/sysusers.d/turnix.conf"),
        (
            &tmpfiles,
            &["--create"][..],
            "systemd/tmpfiles.d/turnix.conf",
        ),
    ] {
        let output = Command::new(tool)
            .arg(format!("--root={}", root.path().display()))
            .args(arguments)
            .arg(repository(file))
            .output()
            .expect("a tool of systemd");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{file}: {said}");
    }
    let passwd = fs::read_to_string(root.path().join("etc/passwd")).expect("passwd");
    let user: Vec<_> = (passwd.lines())
        .find(|line| line.starts_with("turnix:"))
        .expect("the user")
        .split(':')
        .collect();
    assert_eq!(user[5..], ["/var/lib/turnix", "/usr/sbin/nologin"]);
    let group: u32 = user[3].parse().expect("group");
    for (path, mode) in [(etc.clone(), 0o750), (etc.join("turnix.toml"), 0o640)] {
        assert_eq!(owner(&path), (0, group, mode), "{}", path.display());
    }
}

/// User, group and mode.
fn owner(path: &Path) -> (u32, u32, u32) {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).expect("metadata");
    (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
}

/// Whether this process may do everything, as in CI.
pub fn is_root() -> bool {
    owner(Path::new("/proc/self")).0 == 0
}
