//! The web chat's files, as far as they can be judged without a browser.

use crate::lab::Setup;

#[test]
fn the_page_names_only_files_of_the_binary_and_allows_nothing_else() {
    let lab = Setup::default().start();
    let page = lab.request("GET", "/", "", b"");
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    for path in ["/chat.js", "/markdown.js", "/math.js", "/highlight.js", "/chat.css", "/icon.svg"] {
        let file = lab.request("GET", path, "", b"");
        assert_eq!(file.status, 200, "{path}");
        assert_eq!(file.header("x-content-type-options"), Some("nosniff"));
        for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "@import", "url("] {
            assert!(!file.body.contains(word), "{path} has {word}");
        }
    }
}
