//! Others' texts on a terminal: names and reasons come from producers, and must not move its cursor or turn its lines.

use std::fmt::Write;

/// Whether a terminal may do something else with this character than show it.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The text with control characters, terminal escapes and marks of direction written out: `\u{1b}`.
pub(super) fn shown(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        match is_hidden(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
        shown
    })
}

/// JSON of the same meaning that a terminal shows as it is. Such characters stand in strings only, where `\u001b` is the
/// same character.
pub(super) fn shown_json(value: &serde_json::Value) -> String {
    let text = value.to_string();
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        if is_hidden(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(shown, "\\u{unit:04x}").expect("writing to a String does not fail");
            }
        } else {
            shown.push(c);
        }
        shown
    })
}

/// The first `width` characters; the last one tells if there are more.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// A column of a table.
pub(super) struct Column {
    /// Its head.
    pub(super) head: &'static str,
    /// Whether it may be cut to make the table fit.
    pub(super) elastic: bool,
}

/// The least that an elastic column is cut to.
const LEAST: usize = 6;
const GAP: usize = 2;

/// Lines of a table. They fit into `width` characters, if that is given and can be done by cutting elastic columns, the
/// widest first.
pub(super) fn table(columns: &[Column], rows: &[Vec<String>], width: Option<usize>) -> Vec<String> {
    let longest = |(index, column): (usize, &Column)| {
        rows.iter().map(|row| row[index].chars().count()).fold(column.head.chars().count(), usize::max)
    };
    let mut widths: Vec<usize> = columns.iter().enumerate().map(longest).collect();
    let gaps = GAP * columns.len().saturating_sub(1);
    while width.is_some_and(|width| widths.iter().sum::<usize>() + gaps > width) {
        let elastic = (0..columns.len()).filter(|&index| columns[index].elastic && widths[index] > LEAST);
        let Some(widest) = elastic.max_by_key(|&index| widths[index]) else { break };
        widths[widest] -= 1;
    }
    let heads = columns.iter().map(|column| column.head.to_owned()).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{:width$}", cut(cell, width)));
        cells.collect::<Vec<_>>().join(&" ".repeat(GAP)).trim_end().to_owned()
    };
    std::iter::once(&heads).chain(rows).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_nothing_that_it_would_obey() {
        let hostile = "a\u{1b}[2Jb\r\nc\u{9b}d\u{202e}e\u{2066}f\u{200f}g\u{feff}\u{e0041}";
        let shown = shown(hostile);
        assert_eq!(shown, "a\\u{1b}[2Jb\\r\\nc\\u{9b}d\\u{202e}e\\u{2066}f\\u{200f}g\\u{feff}\\u{e0041}");
        let value = serde_json::json!({ hostile: hostile });
        let json = shown_json(&value);
        assert!(!json.chars().any(is_hidden), "{json}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).expect("JSON"), value);
        assert_eq!(super::shown("Bestellung-ü 注文"), "Bestellung-ü 注文");
    }

    #[test]
    fn a_table_is_cut_where_it_may_be_until_it_fits() {
        let columns = [Column { head: "ID", elastic: false }, Column { head: "NAME", elastic: true }];
        let rows = [vec!["0123456789".to_owned(), "a-rather-long-name".to_owned()], vec!["1".into(), "b".into()]];
        assert_eq!(
            table(&columns, &rows, None),
            ["ID          NAME", "0123456789  a-rather-long-name", "1           b"]
        );
        assert_eq!(table(&columns, &rows, Some(20)), ["ID          NAME", "0123456789  a-rathe…", "1           b"]);
        assert_eq!(table(&columns, &rows, Some(3))[1], "0123456789  a-rat…");
    }
}
