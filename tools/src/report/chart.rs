//! The report's charts, as SVG.

use std::fmt::{self, Write as _};

use super::Text;

/// Width of a chart in pixels.
pub(super) const WIDTH: f64 = 900.0;
/// Height of a chart in pixels.
const HEIGHT: f64 = 170.0;
/// Margins around the curves of a chart in pixels.
const LEFT: f64 = 84.0;
const BOTTOM: f64 = 24.0;
const TOP: f64 = 12.0;

/// A quantity over time.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) colour: &'static str,
    /// Pairs of seconds and value.
    pub(super) points: Vec<(f64, f64)>,
}

/// Style of a chart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// A line for each series.
    Lines,
    /// Stacked areas, which add up to the whole.
    Stack,
}

/// Writes a chart of `series` with a numbered mark at each of the times `marks`. `unit` formats values.
pub(super) fn write(
    page: &mut String,
    title: &str,
    series: &[Series],
    style: Style,
    marks: &[f64],
    unit: impl Fn(f64) -> String,
) -> fmt::Result {
    let times = || series.iter().flat_map(|line| line.points.iter().map(|point| point.0));
    let (start, end) = (times().fold(f64::INFINITY, f64::min), times().fold(f64::NEG_INFINITY, f64::max));
    if start >= end {
        return writeln!(
            page,
            "<p class=quiet>{}: a single snapshot has no course over time.</p>",
            Text(title)
        );
    }
    let layers = layers(series, style);
    let largest = layers.iter().flatten().map(|point| point.2).fold(0.0, f64::max);
    let base = HEIGHT - BOTTOM;
    let x = |seconds: f64| LEFT + (seconds - start) * (WIDTH - LEFT - 1.0) / (end - start);
    let y = |value: f64| base - value * (base - TOP) / largest.max(f64::MIN_POSITIVE);
    write_key(page, title, series)?;
    writeln!(
        page,
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" role=\"img\" aria-label=\"{}\">",
        Text(title)
    )?;
    for quarter in 0..=4 {
        let value = largest * f64::from(quarter) / 4.0;
        let at = y(value);
        write!(page, "<path d=\"M{LEFT} {at:.1}H{WIDTH}\" class=grid />")?;
        if quarter % 2 == 0 && (largest > 0.0 || quarter == 0) {
            let label = unit(value);
            write!(
                page,
                "<text x=\"{}\" y=\"{:.1}\" class=end>{}</text>",
                LEFT - 8.0,
                at + 4.0,
                Text(&label)
            )?;
        }
    }
    writeln!(
        page,
        "<text x=\"{LEFT}\" y=\"{0}\">{start:.1} s</text><text x=\"{WIDTH}\" y=\"{0}\" class=end>{end:.1} s</text>",
        HEIGHT - 6.0
    )?;
    for (line, layer) in series.iter().zip(&layers) {
        let upper: Vec<String> =
            layer.iter().map(|(at, _, to)| format!("{:.1} {:.1}", x(*at), y(*to))).collect();
        let lower: Vec<String> =
            layer.iter().rev().map(|(at, from, _)| format!("{:.1} {:.1}", x(*at), y(*from))).collect();
        match style {
            Style::Stack => writeln!(
                page,
                "<path d=\"M{}L{}Z\" fill=\"{}\"/>",
                upper.join("L"),
                lower.join("L"),
                line.colour
            )?,
            Style::Lines => {
                writeln!(page, "<path d=\"M{}\" class=line stroke=\"{}\"/>", upper.join("L"), line.colour)?;
            }
        }
    }
    for (number, &mark) in (1..).zip(marks).filter(|(_, mark)| (start..=end).contains(*mark)) {
        writeln!(
            page,
            "<path d=\"M{0:.1} {TOP}V{base}\" class=mark /><text x=\"{0:.1}\" y=\"{1}\" class=middle>{number}</text>",
            x(mark),
            TOP - 2.0
        )?;
    }
    page.push_str("</svg>\n");
    Ok(())
}

/// Returns the points of each series: time, lower end and upper end.
fn layers(series: &[Series], style: Style) -> Vec<Vec<(f64, f64, f64)>> {
    let mut below: Vec<f64> = vec![0.0; series.iter().map(|line| line.points.len()).max().unwrap_or(0)];
    let layer = |line: &Series| {
        let points = line.points.iter().zip(&mut below);
        let points = points.map(|(&(seconds, value), below)| match style {
            Style::Lines => (seconds, 0.0, value),
            Style::Stack => {
                let from = *below;
                *below += value;
                (seconds, from, *below)
            }
        });
        points.collect()
    };
    series.iter().map(layer).collect()
}

fn write_key(page: &mut String, title: &str, series: &[Series]) -> fmt::Result {
    write!(page, "<p class=key><b>{}</b>", Text(title))?;
    for line in series {
        write!(page, "<span style=\"background:{}\"></span>{}", line.colour, Text(&line.name))?;
    }
    page.push_str("</p>\n");
    Ok(())
}

/// Writes bars, each with its label below and its value above. `unit` formats values.
pub(super) fn write_bars(
    page: &mut String,
    title: &str,
    colour: &str,
    bars: &[(String, u64)],
    unit: impl Fn(u64) -> String,
) -> fmt::Result {
    let largest = bars.iter().map(|bar| bar.1).max().unwrap_or(0).max(1) as f64;
    let step = ((WIDTH - LEFT) / bars.len().max(1) as f64).min(90.0);
    let base = HEIGHT - BOTTOM;
    writeln!(
        page,
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" role=\"img\" aria-label=\"{}\">\
         <path d=\"M{LEFT} {base}H{WIDTH}\" class=grid />",
        Text(title)
    )?;
    for (at, (label, value)) in bars.iter().enumerate() {
        let height = *value as f64 / largest * (base - 2.0 * TOP);
        let left = LEFT + at as f64 * step;
        let middle = left + step / 2.0;
        writeln!(
            page,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>\
             <text x=\"{middle:.1}\" y=\"{:.1}\" class=middle>{}</text>\
             <text x=\"{middle:.1}\" y=\"{}\" class=middle>{}</text>",
            left + 4.0,
            base - height,
            step - 8.0,
            base - height - 4.0,
            Text(&unit(*value)),
            HEIGHT - 6.0,
            Text(label)
        )?;
    }
    page.push_str("</svg>\n");
    Ok(())
}
