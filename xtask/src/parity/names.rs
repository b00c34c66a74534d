//! The names of functions in a source file, and the rows that a name stands for.

/// The names of the functions that a source file defines, in code and not in comments or texts of other lines.
///
/// A test may be generic and be called by others, or be made by a macro, so its attribute says nothing.
pub(super) fn functions(text: &str) -> Vec<&str> {
    text.lines().filter_map(function).collect()
}

fn function(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    loop {
        if let Some(name) = rest.strip_prefix("fn ") {
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_')?;
            return name.get(..end).filter(|name| !name.is_empty());
        }
        // What may stand before `fn`.
        let (word, after) = rest.split_once(' ')?;
        if !matches!(word, "pub" | "pub(crate)" | "pub(super)" | "async" | "const" | "unsafe") {
            return None;
        }
        rest = after;
    }
}

/// The rows that the function `name` names: every part as `p23`, which usually comes first.
pub(super) fn ids(name: &str) -> impl Iterator<Item = String> {
    name.split('_').filter(|part| is_id(part)).map(str::to_uppercase)
}

fn is_id(part: &str) -> bool {
    matches!(part.as_bytes(), [b'p' | b'n' | b'c', tens, ones] if tens.is_ascii_digit() && ones.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_with_whatever_stands_before_them() {
        let text = "//! fn no() {}\n#[test]\nfn p01_a() {}\n    async fn p02_b<A: Api>() {}\npub(crate) async fn c() {}\n\
                    // fn p03_no() {}\nlet text = \"fn p04_no() {}\";\nfn\n";
        assert_eq!(functions(text), ["p01_a", "p02_b", "c"]);
    }

    #[test]
    fn a_name_says_its_rows() {
        for (name, expected) in [
            ("p23_one_hint", vec!["P23"]),
            ("p30_p31_n02_pods", vec!["P30", "P31", "N02"]),
            ("p07_slices_and_p09_this_node", vec!["P07", "P09"]),
            ("p123_no_row", vec![]),
            ("p2_no_row", vec![]),
            ("c01_admin_tier", vec!["C01"]),
        ] {
            assert_eq!(ids(name).collect::<Vec<_>>(), expected, "{name}");
        }
    }
}
