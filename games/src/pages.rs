//! What a browser plays the demo games with: built into the program, so that nothing has to be installed.

/// Each page with its path, as `App::pages` takes them.
pub const PAGES: &[(&str, &[u8])] = &[
    ("/index.html", include_bytes!("../pages/index.html")),
    ("/start.css", include_bytes!("../pages/start.css")),
    ("/start.js", include_bytes!("../pages/start.js")),
    ("/style.css", include_bytes!("../pages/style.css")),
    ("/favicon.svg", include_bytes!("../pages/favicon.svg")),
    ("/arena/index.html", include_bytes!("../pages/arena/index.html")),
    ("/arena/arena.css", include_bytes!("../pages/arena/arena.css")),
    ("/arena/arena.js", include_bytes!("../pages/arena/arena.js")),
    ("/duel/index.html", include_bytes!("../pages/duel/index.html")),
    ("/duel/duel.css", include_bytes!("../pages/duel/duel.css")),
    ("/duel/duel.js", include_bytes!("../pages/duel/duel.js")),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::PAGES;

    /// The content policy lets neither run, and a page that needs one would be found out only by who looks at it.
    #[test]
    fn no_page_has_inline_scripts_or_styles_and_each_names_only_what_is_there() {
        let paths: BTreeSet<&str> = PAGES.iter().map(|(path, _)| *path).collect();
        for (path, body) in PAGES.iter().filter(|(path, _)| path.ends_with(".html")) {
            let text = str::from_utf8(body).unwrap();
            for banned in
                ["<style", " style=", "<script>", "javascript:", " onclick", "http://", "https://"]
            {
                assert!(!text.contains(banned), "{path} has {banned}");
            }
            let folder = path.strip_suffix("index.html").unwrap();
            for link in text.split(" src=\"").chain(text.split(" href=\"")).skip(1) {
                let link = link.split('"').next().unwrap();
                let whole =
                    if link.starts_with('/') { link.into() } else { format!("{folder}{link}") };
                let file = if whole.ends_with('/') { format!("{whole}index.html") } else { whole };
                let is_there = paths.contains(file.as_str()) || text.starts_with(link);
                assert!(is_there, "{path} names {link}, which is not there");
            }
        }
    }
}
