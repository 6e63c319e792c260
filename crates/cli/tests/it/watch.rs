//! `wels run --watch`: the page of a run while it goes on, and for whom it is.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::lab::Lab;

/// Status line, headers and body of what the address answers.
fn ask(address: &str, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "{request}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn the_page_follows_the_run_for_this_machine_alone_and_changes_no_bit() {
    let lab = Lab::new();
    // Long enough to be looked at.
    let long = [("steps = 20", "steps = 300")];
    lab.done(&["run", &lab.recipe("alone", &long)]);
    let recipe = lab.recipe("watched", &long);
    let mut child = lab.start(&["run", &recipe, "--watch=127.0.0.1:0"]);
    let mut said = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut line = String::new();
    while !line.contains("http://") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "the run says where its page is");
    }
    let address = line.trim().rsplit_once("http://").expect("an address").1.to_string();
    let reader = std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));

    // Once steps are done, the page has them.
    let begun = Instant::now();
    let mut seen = None;
    while seen.is_none() && begun.elapsed() < Duration::from_secs(60) {
        let Some(page) = ask(&address, "GET / HTTP/1.1\r\nHost: localhost") else { break };
        assert!(page.starts_with("HTTP/1.1 200 "), "{page}");
        seen = Some(page).filter(|page| page.contains("<h2>Curves of pretrain</h2>"));
        let script = ask(&address, "GET /watch.js HTTP/1.1\r\nHost: 127.0.0.1:1");
        let foreign = ask(&address, "GET / HTTP/1.1\r\nHost: runs.example.org");
        let posted = ask(&address, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0");
        if let (Some(script), Some(foreign), Some(posted)) = (script, foreign, posted) {
            assert!(script.starts_with("HTTP/1.1 200 ") && script.contains("text/javascript"), "{script}");
            assert!(foreign.starts_with("HTTP/1.1 403 ") && !foreign.contains("watched"), "{foreign}");
            assert!(posted.starts_with("HTTP/1.1 405 "), "{posted}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let page = seen.expect("curves before the run is over");
    assert!(page.contains("content-security-policy: default-src 'none'"), "{page}");
    assert!(page.contains("<script src=\"/watch.js\" defer></script></body>"), "{page}");
    assert!(child.wait().unwrap().success());
    reader.join().unwrap().unwrap();
    assert_eq!(lab.metrics("watched"), lab.metrics("alone"));
}

#[test]
fn an_address_that_others_reach_is_told() {
    let lab = Lab::new();
    let said = lab.done(&["run", &lab.recipe("open", &[]), "--watch=0.0.0.0:0"]);
    assert!(said.stderr.contains("can read this run's figures and texts"), "{said:?}");
}

#[test]
fn an_address_that_cannot_be_had_is_refused_before_anything_is_written() {
    let lab = Lab::new();
    let recipe = lab.recipe("never", &[]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("--watch={}", taken.local_addr().unwrap());
    for watch in [&taken[..], "--watch=nowhere"] {
        let said = lab.wels(&["run", &recipe, watch]);
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.stderr.contains(watch) && said.stderr.contains("--watch=127.0.0.1:0 takes any"), "{said:?}");
        assert!(!lab.at("runs/never").exists());
    }
}
