//! Plots as SVG and PNG, with a font of our own: a fresh system may have none.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::{coord::Shift, prelude::*, style::register_font};

use super::super::statistics::Spread;

/// A bar with its quartiles.
#[derive(Debug)]
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) spread: Spread,
}

/// A line of points.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

const WIDTH: u32 = 900;
const FONT: &str = "sans-serif";
/// Colours that differ for everybody, too (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// What is drawn.
enum Plot<'a> {
    Bars(&'a [Bar]),
    Lines(&'a [Line]),
}

/// Draws horizontal bars, the first one on top, into `path` with the endings of both formats.
pub(super) fn bars(path: &Path, title: &str, bars: &[Bar]) -> Result<()> {
    let height = 90 + 26 * u32::try_from(bars.len())?;
    both(path, height, title, &Plot::Bars(bars))
}

/// Draws lines over the number of services, which grows by factors.
pub(super) fn lines(path: &Path, title: &str, lines: &[Line]) -> Result<()> {
    both(path, 480, title, &Plot::Lines(lines))
}

fn both(path: &Path, height: u32, title: &str, plot: &Plot<'_>) -> Result<()> {
    register_font(FONT, FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_invalid| anyhow!("the font is broken"))?;
    let (svg, png) = (path.with_extension("svg"), path.with_extension("png"));
    draw(&SVGBackend::new(&svg, (WIDTH, height)).into_drawing_area(), title, plot)
        .with_context(|| format!("cannot draw {}", svg.display()))?;
    draw(&BitMapBackend::new(&png, (WIDTH, height)).into_drawing_area(), title, plot)
        .with_context(|| format!("cannot draw {}", png.display()))
}

fn draw<B>(area: &DrawingArea<B, Shift>, title: &str, plot: &Plot<'_>) -> Result<()>
where
    B: DrawingBackend,
    B::ErrorType: 'static,
{
    area.fill(&WHITE)?;
    match plot {
        Plot::Bars(bars) => draw_bars(area, title, bars)?,
        Plot::Lines(lines) => draw_lines(area, title, lines)?,
    }
    area.present()?;
    Ok(())
}

fn draw_bars<B>(area: &DrawingArea<B, Shift>, title: &str, bars: &[Bar]) -> Result<()>
where
    B: DrawingBackend,
    B::ErrorType: 'static,
{
    let most = bars.iter().map(|bar| bar.spread.upper).fold(1.0, f64::max) * 1.1;
    let count = i32::try_from(bars.len())?;
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 18))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(260)
        .build_cartesian_2d(0.0..most, (0..count).into_segmented())?;
    let name = |position: &SegmentValue<i32>| match position {
        SegmentValue::CenterOf(row) => usize::try_from(count - 1 - row)
            .ok()
            .and_then(|index| bars.get(index))
            .map_or_else(String::new, |bar| bar.name.clone()),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(bars.len())
        .y_label_formatter(&name)
        .label_style((FONT, 12))
        .draw()?;
    for (row, bar) in (0..count).rev().zip(bars) {
        let Spread { lower, median, upper } = bar.spread;
        let colour = COLOURS[usize::from(bar.name.starts_with("sluice"))];
        let mut rectangle = Rectangle::new(
            [(0.0, SegmentValue::Exact(row)), (median, SegmentValue::Exact(row + 1))],
            colour.mix(0.8).filled(),
        );
        rectangle.set_margin(4, 4, 0, 0);
        let middle = SegmentValue::CenterOf(row);
        let whisker = PathElement::new(vec![(lower, middle.clone()), (upper, middle.clone())], BLACK.stroke_width(2));
        chart.draw_series([rectangle])?;
        chart.draw_series([whisker])?;
        chart.draw_series([Text::new(format!("  {median:.2}"), (upper, middle), (FONT, 12))])?;
    }
    Ok(())
}

fn draw_lines<B>(area: &DrawingArea<B, Shift>, title: &str, lines: &[Line]) -> Result<()>
where
    B: DrawingBackend,
    B::ErrorType: 'static,
{
    let points = || lines.iter().flat_map(|line| &line.points);
    let most = points().map(|point| point.1).fold(1.0, f64::max) * 1.1;
    let (first, last) = points().fold((f64::MAX, 1.0), |(low, high), point| (point.0.min(low), point.0.max(high)));
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 18))
        .margin(15)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d((first..last * 1.1).log_scale(), 0.0..most)?;
    chart.configure_mesh().x_desc("services").label_style((FONT, 12)).draw()?;
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style).point_size(4))?
            .label(line.name.clone())
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .label_font((FONT, 12))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_drawn_without_a_font_of_the_system() {
        let folder = tempfile::tempdir().unwrap();
        let spread = Spread { lower: 0.8, median: 0.9, upper: 1.0 };
        let path = folder.path().join("bars");
        bars(&path, "Bars", &[Bar { name: "sluice".to_owned(), spread }, Bar { name: "other".to_owned(), spread }])
            .unwrap();
        let line = Line { name: "sluice".to_owned(), points: vec![(10.0, 1.0), (10_000.0, 0.9)] };
        lines(&folder.path().join("lines"), "Lines", &[line]).unwrap();
        let svg = std::fs::read_to_string(path.with_extension("svg")).unwrap();
        assert!(svg.contains("sluice"), "names are text");
        assert!(std::fs::read(path.with_extension("png")).unwrap().starts_with(b"\x89PNG"));
        assert!(folder.path().join("lines.svg").exists() && folder.path().join("lines.png").exists());
    }
}
