//! The ratios as bars, in SVG.

use std::fmt::Write;

use crate::cells::Measure;
use crate::report::{Comparison, Spread, ratio};

const WIDTH: f64 = 840.0;
const LEFT: f64 = 300.0;
/// Room for the figures, and for names next to them.
const RIGHT: f64 = 76.0;
const RIGHT_NAMED: f64 = 190.0;
const TOP: f64 = 64.0;
const BAR: f64 = 14.0;
const GAP: f64 = 12.0;
/// The largest ratio that is drawn to scale.
const MOST: f64 = 1.5;

const STYLE: &str = "\
svg { font: 13px system-ui, sans-serif; }
text { fill: #1f2328; } .faint { fill: #59636e; font-size: 12px; } .head { font-weight: 600; font-size: 15px; }
.grid { stroke: #d1d9e0; } .base { stroke: #59636e; stroke-width: 1.5; } .good { fill: #2f81f7; } .miss { fill: #d4860b; }
.plain { fill: #8c959f; } .range { stroke: #1f2328; stroke-opacity: .55; } .goal { stroke: #1f2328; stroke-width: 2.5; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .faint { fill: #9198a1; } .grid { stroke: #3d444d; } .base { stroke: #9198a1; }
.good { fill: #388bfd; } .miss { fill: #d29922; } .plain { fill: #656c76; }
.range { stroke: #f0f6fc; } .goal { stroke: #f0f6fc; }
}";

const LEGEND: &str = "Bar: ratio of the medians, orange where the target is missed. Thin line: range over repetitions. Thick tick: target.";

struct Row {
    title: String,
    bars: Vec<(String, Spread)>,
    target: Option<f64>,
}

/// The picture; `None` without a baseline or anything to compare with it.
pub fn draw(comparison: &Comparison) -> Option<String> {
    let rows = rows(comparison);
    if rows.is_empty() {
        return None;
    }
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = picture(&mut text, comparison, &rows);
    Some(text)
}

fn rows(comparison: &Comparison) -> Vec<Row> {
    let Some(baseline) = comparison.baseline() else {
        return Vec::new();
    };
    let mut rows = Vec::new();
    for (cell, runs) in &comparison.cells {
        for goal in cell.goals {
            let upside_down = goal.measure.more_is_better();
            let bars: Vec<(String, Spread)> = (comparison.others())
                .filter_map(|server| {
                    let ratio = ratio(runs, server, baseline, goal.measure)?;
                    let name = comparison.servers[server].name.clone();
                    Some((name, if upside_down { inverse(ratio) } else { ratio }))
                })
                .collect();
            if bars.is_empty() {
                continue;
            }
            rows.push(Row {
                title: format!("{}{}", cell.title, suffix(goal.measure)),
                bars,
                target: goal
                    .target
                    .map(|target| if upside_down { 1.0 / target } else { target }),
            });
        }
    }
    rows
}

const fn suffix(measure: Measure) -> &'static str {
    match measure {
        Measure::PacketCpu => "",
        Measure::RoundTrip => ": round trip",
        Measure::AllocationRate => ": time",
        Measure::AllocationCpu => ": CPU",
        Measure::AllocationMemory => ": memory",
    }
}

/// Less is better in every row.
fn inverse(ratio: Spread) -> Spread {
    Spread {
        median: 1.0 / ratio.median,
        min: 1.0 / ratio.max,
        max: 1.0 / ratio.min,
    }
}

fn picture(text: &mut String, comparison: &Comparison, rows: &[Row]) -> std::fmt::Result {
    let bars: usize = rows.iter().map(|row| row.bars.len()).sum();
    let bottom = TOP + bars as f64 * (BAR + 2.0) + rows.len() as f64 * GAP;
    let height = bottom + 58.0;
    let largest =
        (rows.iter().flat_map(|row| &row.bars)).fold(1.0_f64, |most, (_, bar)| most.max(bar.max));
    let scale = (largest * 1.05).clamp(1.2, MOST);
    let named = comparison.servers.len() > 2;
    let right = WIDTH - if named { RIGHT_NAMED } else { RIGHT };
    let x = |ratio: f64| LEFT + ratio.clamp(0.0, scale) / scale * (right - LEFT);
    let baseline = comparison
        .baseline()
        .map(|index| &comparison.servers[index]);
    let baseline = baseline.map_or_else(String::new, |server| {
        escape(&format!("{} {}", server.name, server.version))
    });
    writeln!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
         <title>CPU time, round trip and memory, relative to {baseline}</title>\n<style>{STYLE}</style>\n\
         <text class=\"head\" x=\"16\" y=\"24\">CPU time per relayed packet, {baseline} = 1; less is better</text>"
    )?;
    for tenth in (0..)
        .step_by(2)
        .take_while(|tenth| f64::from(*tenth) / 10.0 <= scale)
    {
        let value = f64::from(tenth) / 10.0;
        let class = if tenth == 10 { "base" } else { "grid" };
        writeln!(
            text,
            "<line class=\"{class}\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1}\" y2=\"{bottom}\"/>\
             <text class=\"faint\" x=\"{0:.1}\" y=\"{2}\" text-anchor=\"middle\">{value}</text>",
            x(value),
            TOP - 8.0,
            TOP - 14.0
        )?;
    }
    let mut y = TOP;
    for row in rows {
        let tall = row.bars.len() as f64 * (BAR + 2.0);
        writeln!(
            text,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 12.0,
            y + tall / 2.0 + 4.0,
            escape(&row.title)
        )?;
        for (index, (name, bar)) in row.bars.iter().enumerate() {
            let class = match row.target {
                _ if name != "turnix" => "plain",
                Some(target) if bar.median > target => "miss",
                _ => "good",
            };
            let top = y + index as f64 * (BAR + 2.0);
            let middle = top + BAR / 2.0;
            writeln!(
                text,
                "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{BAR}\" rx=\"2\"/>\
                 <line class=\"range\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>",
                x(bar.median) - LEFT,
                x(bar.min),
                x(bar.max)
            )?;
            let label = if named {
                format!("{:.2} {name}", bar.median)
            } else {
                format!("{:.2}", bar.median)
            };
            writeln!(
                text,
                "<text class=\"faint\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                right + 14.0,
                middle + 4.0,
                escape(&label)
            )?;
        }
        if let Some(target) = row.target {
            writeln!(
                text,
                "<line class=\"goal\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1:.1}\" y2=\"{2:.1}\"/>",
                x(target),
                y - 3.0,
                y + tall + 1.0
            )?;
        }
        y += tall + GAP;
    }
    writeln!(
        text,
        "<text class=\"faint\" x=\"16\" y=\"{:.1}\">{LEGEND}</text>\n\
         <text class=\"faint\" x=\"16\" y=\"{:.1}\">{}</text>\n</svg>",
        bottom + 24.0,
        bottom + 42.0,
        escape(&circumstances(comparison))
    )
}

fn circumstances(comparison: &Comparison) -> String {
    let find = |key: &str| {
        let row = comparison.machine.iter().find(|(name, _)| *name == key);
        row.map_or("", |(_, value)| value.as_str())
    };
    let cpu = find("CPU").split(',').next().unwrap_or("");
    format!(
        "Loopback, one core, {cpu}, {}, {}",
        find("kernel"),
        find("date")
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
