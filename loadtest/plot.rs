//! Latency by percentile as a small SVG: one line per run, logarithmic on both axes, so that tails can be compared.
//!
//! Called by `main` and `compare`. It refuses to depend on fonts or scripts.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 56.0;
/// Distinguishable also by those who do not see all colours (Okabe and Ito), black first.
const COLOURS: [&str; 7] = ["#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
/// The percentile axis shows log10(1 / (1 - p)): each nine takes the same room.
const TICKS: [(f64, &str); 7] =
    [(0.0, "0"), (0.5, "50"), (0.75, "75"), (0.9, "90"), (0.99, "99"), (0.999, "99.9"), (0.9999, "99.99")];

/// `runs` are a name and a histogram of nanoseconds.
pub(crate) fn svg(title: &str, runs: &[(String, &Histogram<u64>)]) -> String {
    let runs: Vec<_> = runs.iter().filter(|(_, h)| !h.is_empty()).collect();
    let samples = runs.iter().map(|(_, h)| h.len()).max().unwrap_or(1);
    // A percentile that less than ten samples lie beyond is chance.
    let nines = ((samples as f64 / 10.0).max(10.0).log10()).min(4.3);
    let low = runs.iter().map(|(_, h)| h.value_at_quantile(0.0)).min().unwrap_or(1_000).max(1) as f64;
    let high =
        runs.iter().map(|(_, h)| h.value_at_quantile(quantile(nines))).max().unwrap_or(1_000_000) as f64;
    let (low, high) = (low.log10(), (high * 1.1).log10().max(low.log10() + 0.3));
    let x = |nines_at: f64| LEFT + nines_at / nines * (WIDTH - LEFT - RIGHT);
    let y = |ns: f64| HEIGHT - BOTTOM - (ns.max(1.0).log10() - low) / (high - low) * (HEIGHT - TOP - BOTTOM);

    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" fill="#222">
<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>
<text x="{LEFT}" y="24" font-size="15" font-weight="bold">{}</text>"##,
        escape(title)
    );
    for (p, label) in TICKS {
        let at = (1.0 / (1.0 - p)).log10();
        if at <= nines {
            let (px, bottom) = (x(at), HEIGHT - BOTTOM);
            let _ = writeln!(out, r##"<path d="M{px:.1} {TOP}V{bottom}" stroke="#ddd"/>"##);
            let _ = writeln!(
                out,
                r#"<text x="{px:.1}" y="{}" text-anchor="middle">{label}</text>"#,
                bottom + 18.0
            );
        }
    }
    for exponent in 0..13 {
        for step in [1.0, 2.0, 5.0] {
            let ns = step * 10f64.powi(exponent);
            if (low..=high).contains(&ns.log10()) {
                let (py, right) = (y(ns), WIDTH - RIGHT);
                let _ = writeln!(out, r##"<path d="M{LEFT} {py:.1}H{right}" stroke="#ddd"/>"##);
                let (tx, ty) = (LEFT - 8.0, py + 4.0);
                let _ = writeln!(
                    out,
                    r#"<text x="{tx}" y="{ty:.1}" text-anchor="end">{}</text>"#,
                    short_time(ns)
                );
            }
        }
    }
    let middle = f64::midpoint(LEFT, WIDTH - RIGHT);
    let _ = writeln!(
        out,
        r#"<text x="{middle}" y="{}" text-anchor="middle">percentile of requests</text>"#,
        HEIGHT - 14.0
    );
    let middle = f64::midpoint(TOP, HEIGHT - BOTTOM);
    let _ = writeln!(
        out,
        r#"<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">latency</text>"#
    );
    for (i, (name, histogram)) in runs.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let mut path = String::new();
        for step in 0..=200 {
            let at = nines * f64::from(step) / 200.0;
            let ns = histogram.value_at_quantile(quantile(at)) as f64;
            let _ = write!(path, "{}{:.1} {:.1}", if step == 0 { 'M' } else { 'L' }, x(at), y(ns));
        }
        let _ = writeln!(out, r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>"#);
        let ly = TOP + 16.0 + 18.0 * i as f64;
        let _ = writeln!(
            out,
            r#"<path d="M{} {ly}h22" stroke="{colour}" stroke-width="3"/><text x="{}" y="{}">{}</text>"#,
            LEFT + 14.0,
            LEFT + 42.0,
            ly + 4.0,
            escape(name)
        );
    }
    out.push_str("</svg>\n");
    out
}

fn quantile(nines: f64) -> f64 {
    1.0 - 10f64.powf(-nines)
}

fn short_time(ns: f64) -> String {
    match ns {
        _ if ns >= 1e9 => format!("{} s", ns / 1e9),
        _ if ns >= 1e6 => format!("{} ms", ns / 1e6),
        _ if ns >= 1e3 => format!("{} µs", ns / 1e3),
        _ => format!("{ns} ns"),
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(values: impl IntoIterator<Item = u64>) -> Histogram<u64> {
        let mut histogram = Histogram::new(3).expect("legal");
        values.into_iter().for_each(|v| histogram.record(v).expect("auto-resizes"));
        histogram
    }

    #[test]
    fn names_cannot_break_the_markup() {
        assert_eq!(escape("a<b>&\"c\"\n"), "a&lt;b&gt;&amp;&quot;c&quot; ");
        let run = histogram([1_000_000]);
        let svg = svg("<script>", &[("x & y".to_owned(), &run)]);
        assert!(!svg.contains("<script>") && svg.contains("&lt;script&gt;") && svg.contains("x &amp; y"));
    }

    #[test]
    fn every_point_lies_inside_the_picture() {
        let (narrow, wide) = (histogram([500_000; 100]), histogram((1..100_000).map(|i| i * 1_000)));
        let svg = svg("t", &[("narrow".to_owned(), &narrow), ("wide".to_owned(), &wide)]);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        let lines: Vec<&str> = svg.lines().filter(|l| l.contains(r#"fill="none""#)).collect();
        assert_eq!(lines.len(), 2);
        for line in lines {
            let path = line.split('"').nth(1).expect("a d attribute");
            for point in path.split(['M', 'L']).filter(|p| !p.is_empty()) {
                let (x, y) = point.split_once(' ').expect("two numbers");
                let (x, y): (f64, f64) = (x.parse().expect("x"), y.parse().expect("y"));
                assert!((LEFT..=WIDTH).contains(&x) && (0.0..=HEIGHT).contains(&y), "{point}");
            }
        }
    }

    #[test]
    fn nothing_measured_is_an_empty_plot() {
        assert!(svg("t", &[]).ends_with("</svg>\n"));
    }
}
