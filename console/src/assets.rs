//! What pages are made of besides HTML, as part of the program: they work on a machine without a way out.

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// The files by name, with their type. uPlot 1.6.32 is a third party's, its licence beside it.
const ASSETS: [(&str, &str, &str); 6] = [
    ("console.js", SCRIPT, include_str!("../assets/console.js")),
    ("console.css", STYLE, include_str!("../assets/console.css")),
    ("uplot.js", SCRIPT, include_str!("../assets/uplot.js")),
    ("uplot.css", STYLE, include_str!("../assets/uplot.css")),
    ("uplot-LICENSE", "text/plain; charset=utf-8", include_str!("../assets/uplot-LICENSE")),
    ("icon.svg", "image/svg+xml", include_str!("../assets/icon.svg")),
];

pub(crate) async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|(of, ..)| *of == name) {
        // Asked for anew with each page: another build may be behind this port by then.
        Some((_, kind, content)) => {
            ([(header::CONTENT_TYPE, *kind), (header::CACHE_CONTROL, "no-cache")], *content)
                .into_response()
        }
        None => (StatusCode::NOT_FOUND, "there is no such file\n").into_response(),
    }
}
