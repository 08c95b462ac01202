//! Medians, ratios and the tables.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::cells::{Cell, Measure};
use crate::servers::Candidate;

/// Fields of the generator's result that are kept.
const REPORTED: [&str; 8] = [
    "delivered",
    "packets_per_second",
    "sent_total",
    "loss_ratio",
    "latency",
    "generator",
    "server",
    "setup",
];

/// The generator's result for one server and one repetition.
pub struct Run {
    /// Place in the list of servers.
    pub server: usize,
    /// Counted from 0.
    pub repetition: usize,
    /// As `turnix bench --json` prints it.
    pub report: Value,
}

/// Everything that was measured.
pub struct Comparison {
    /// What it ran on.
    pub machine: Vec<(&'static str, String)>,
    /// Who took part.
    pub servers: Vec<Candidate>,
    /// Name of the server that the others are compared with.
    pub baseline: String,
    /// Who did not take part, and why.
    pub notes: Vec<String>,
    /// How often.
    pub repeats: u32,
    /// How long each time.
    pub seconds: f64,
    /// In the order they ran.
    pub cells: Vec<(&'static Cell, Vec<Run>)>,
}

/// Median, smallest and largest.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// `None` for no values.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            (values[middle - 1] + values[middle]) / 2.0
        };
        Some(Self { median, min, max })
    }
}

/// Values of one field over the repetitions of one server.
fn values<'a>(
    runs: &'a [Run],
    server: usize,
    pointer: &'a str,
) -> impl Iterator<Item = (usize, f64)> + 'a {
    (runs.iter())
        .filter(move |run| run.server == server)
        .filter_map(move |run| Some((run.repetition, run.report.pointer(pointer)?.as_f64()?)))
}

/// One field of one server.
pub fn spread(runs: &[Run], server: usize, pointer: &str) -> Option<Spread> {
    Spread::of(
        values(runs, server, pointer)
            .map(|(_, value)| value)
            .collect(),
    )
}

/// A server's figure by the baseline's: of the medians, and the extremes among single repetitions.
pub fn ratio(runs: &[Run], server: usize, baseline: usize, measure: Measure) -> Option<Spread> {
    let pointer = measure.pointer();
    let ours = spread(runs, server, pointer)?;
    let theirs = spread(runs, baseline, pointer)?;
    let paired: Vec<f64> = values(runs, server, pointer)
        .filter_map(|(repetition, value)| {
            let mut others = values(runs, baseline, pointer);
            let (_, other) = others.find(|(other, _)| *other == repetition)?;
            (other > 0.0).then_some(value / other)
        })
        .collect();
    let paired = Spread::of(paired)?;
    (theirs.median > 0.0).then(|| Spread {
        median: ours.median / theirs.median,
        ..paired
    })
}

/// Whether the generator's CPU was full and the server's was not.
fn generator_was_the_limit(runs: &[Run], server: usize) -> bool {
    let cores = |pointer| spread(runs, server, pointer).map_or(0.0, |cores| cores.median);
    cores("/generator/cores") > 0.9 && cores("/server/cores") < 0.88
}

impl Comparison {
    /// Place of the baseline in the list of servers, if it took part.
    pub fn baseline(&self) -> Option<usize> {
        (self.servers.iter()).position(|server| server.name == self.baseline)
    }

    /// Everyone but the baseline.
    pub fn others(&self) -> impl Iterator<Item = usize> + '_ {
        let baseline = self.baseline();
        (0..self.servers.len()).filter(move |index| Some(*index) != baseline)
    }

    /// The summary, the details and the machine.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.summary(&mut text);
        let _ = self.details(&mut text);
        let _ = self.circumstances(&mut text);
        text
    }

    fn summary(&self, text: &mut String) -> std::fmt::Result {
        let baseline = self.baseline();
        write!(text, "| load | unit |")?;
        if let Some(baseline) = baseline {
            write!(text, " {} |", self.servers[baseline].name)?;
        }
        for server in self.others() {
            write!(text, " {0} |", self.servers[server].name)?;
            if baseline.is_some() {
                write!(text, " ratio (range) |")?;
            }
        }
        writeln!(text, " target |")?;
        let others = self.others().count();
        let columns = others + if baseline.is_some() { others + 1 } else { 0 };
        writeln!(text, "|---|---|{}---|", "---:|".repeat(columns))?;
        for (cell, runs) in &self.cells {
            for goal in cell.goals {
                let measure = goal.measure;
                let shown = |server| {
                    let spread = spread(runs, server, measure.pointer());
                    spread.map_or("—".into(), |spread| measure.show(spread.median))
                };
                write!(text, "| {} | {} |", cell.title, measure.unit())?;
                if let Some(baseline) = baseline {
                    write!(text, " {} |", shown(baseline))?;
                }
                for server in self.others() {
                    write!(text, " {} |", shown(server))?;
                    let Some(baseline) = baseline else { continue };
                    match ratio(runs, server, baseline, measure) {
                        Some(Spread { median, min, max }) => {
                            write!(text, " **{median:.2}** ({min:.2}–{max:.2}) |")?;
                        }
                        None => write!(text, " — |")?,
                    }
                }
                let sign = if measure.more_is_better() {
                    "≥"
                } else {
                    "≤"
                };
                match goal.target {
                    Some(target) => writeln!(text, " {sign} {target} |")?,
                    None => writeln!(text, " |")?,
                }
            }
        }
        writeln!(
            text,
            "\nMedians of {} × {} s each. The ratio is that of the medians; its range is over single repetitions.",
            self.repeats, self.seconds
        )
    }

    fn details(&self, text: &mut String) -> std::fmt::Result {
        writeln!(
            text,
            "\n## Details\n\n| cell | server | median | min–max | kpps | lost | user mode | server CPU | generator CPU |\n\
             |---|---|---:|---:|---:|---:|---:|---:|---:|"
        )?;
        let mut limited = false;
        for (cell, runs) in &self.cells {
            for goal in cell.goals {
                for (server, candidate) in self.servers.iter().enumerate() {
                    let measure = goal.measure;
                    let Some(figure) = spread(runs, server, measure.pointer()) else {
                        continue;
                    };
                    let median = |pointer| {
                        spread(runs, server, pointer).map_or(f64::NAN, |spread| spread.median)
                    };
                    let mark =
                        generator_was_the_limit(runs, server) && measure == Measure::PacketCpu;
                    limited |= mark;
                    writeln!(
                        text,
                        "| {} | {} | {} {} | {}–{} | {:.0} | {:.2} % | {:.0} % | {:.2} | {:.2}{} |",
                        cell.name,
                        candidate.name,
                        measure.show(figure.median),
                        measure.unit(),
                        measure.show(figure.min),
                        measure.show(figure.max),
                        median("/packets_per_second") / 1e3,
                        median("/loss_ratio") * 100.0,
                        median("/server/user_share") * 100.0,
                        median("/server/cores"),
                        median("/generator/cores"),
                        if mark { " †" } else { "" },
                    )?;
                }
            }
        }
        if limited {
            writeln!(
                text,
                "\n† The generator was the limit: the server could have relayed more than these packets per second."
            )?;
        }
        Ok(())
    }

    fn circumstances(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "\n## Machine\n\n| | |\n|---|---|")?;
        for (name, value) in &self.machine {
            writeln!(text, "| {name} | {value} |")?;
        }
        for server in &self.servers {
            writeln!(text, "| {} | {} |", server.name, server.version)?;
        }
        for note in &self.notes {
            writeln!(text, "\n{note}.")?;
        }
        Ok(())
    }

    /// Every value of every figure.
    pub fn json(&self) -> String {
        let machine: Value = (self.machine.iter())
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect();
        let servers: Vec<Value> = (self.servers.iter())
            .map(|server| json!({ "name": server.name, "version": server.version }))
            .collect();
        let cells: Vec<Value> = (self.cells.iter())
            .map(|(cell, runs)| self.cell_json(cell, runs))
            .collect();
        let all = json!({
            "machine": machine,
            "servers": servers,
            "baseline": self.baseline,
            "notes": self.notes,
            "repeats": self.repeats,
            "seconds": self.seconds,
            "cells": cells,
        });
        format!("{all}\n")
    }

    fn cell_json(&self, cell: &Cell, runs: &[Run]) -> Value {
        let measures: Vec<Value> = (cell.goals.iter())
            .map(|goal| {
                let measure = goal.measure;
                let ratios: Value = (self.baseline().into_iter())
                    .flat_map(|baseline| self.others().map(move |server| (baseline, server)))
                    .filter_map(|(baseline, server)| {
                        let ratio = ratio(runs, server, baseline, measure)?;
                        let value = json!({ "of_medians": ratio.median, "min": ratio.min, "max": ratio.max });
                        Some((self.servers[server].name.clone(), value))
                    })
                    .collect();
                json!({
                    "field": measure.pointer(),
                    "unit": measure.unit(),
                    "more_is_better": measure.more_is_better(),
                    "target": goal.target,
                    "ratios": ratios,
                })
            })
            .collect();
        let runs: Vec<Value> = (runs.iter())
            .map(|run| {
                // What the arguments say already is left out, and so is where the server was.
                let report: Value = (REPORTED.iter())
                    .filter_map(|field| Some(((*field).to_owned(), run.report.get(field)?.clone())))
                    .collect();
                json!({
                    "server": self.servers[run.server].name,
                    "repetition": run.repetition,
                    "report": report,
                })
            })
            .collect();
        json!({ "name": cell.name, "title": cell.title, "arguments": cell.arguments, "measures": measures, "runs": runs })
    }
}
