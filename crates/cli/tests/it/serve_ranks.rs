//! A model over several ranks: the bytes and bills of one process, as threads of one, and with the feature `mpi` as
//! processes of `mpirun`; ranks that are killed under load; the configurations of proxies in front of servers.

use std::fs;
use std::io::Read;
use std::process::Command;

use serde_json::{Value, json};

use crate::serve::{Lab, Server, refused, write_model_of};

/// A model whose matrices are large enough to be cut.
fn lab() -> Lab {
    let lab = Lab::new();
    fs::remove_dir_all(lab.at("model")).unwrap();
    write_model_of(&lab.at("model"), 2048, 1024, 2);
    lab
}

/// What a key asks, which says how it will be answered whoever is there besides: its answers, without names and times.
fn answers(server: &Server, key: &str) -> Vec<Value> {
    let ask = |seed: u64| {
        let body = json!({"model": "model", "messages": [{"role": "user", "content": format!("a fish {seed}")}],
            "max_tokens": 24, "seed": seed, "logprobs": true, "logit_bias": {"1": -100}});
        let mut reply = String::new();
        server.send(key, &body).read_to_string(&mut reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").expect("a reply");
        assert!(head.starts_with("HTTP/1.1 200"), "{reply}");
        let body: Value = serde_json::from_str(body).expect("JSON");
        json!([body["choices"], body["usage"]])
    };
    (0..6).map(ask).collect()
}

/// What a key's requests were billed, in the order of their names' being unimportant.
fn bill(lab: &Lab, key: &str) -> String {
    let usage = lab.wels(&["usage", "--json"]);
    usage.lines().find(|line| line.contains(&format!("\"{key}\""))).expect("what it used").replace(key, "")
}

const PRICES: &str = "peak = { hit = \"1\", miss = \"1\", output = \"2\" }\n";

fn prices(lab: &Lab) -> String {
    fs::write(lab.at("prices.toml"), PRICES).unwrap();
    lab.at("prices.toml").display().to_string()
}

#[test]
fn ranks_as_threads_give_the_bytes_and_bills_of_one() {
    let lab = lab();
    let prices = prices(&lab);
    for quant in ["stored", "q4"] {
        let mut expected = None;
        for ranks in ["1", "2", "4"] {
            let name = format!("{quant}-{ranks}");
            let key = lab.wels(&["keys", "add", &name]).trim().to_owned();
            let mut server = lab.serve(&["--prices", &prices, "--quant", quant, "--ranks", ranks]);
            let got = answers(&server, &key);
            server.signal("-TERM");
            assert!(server.child.wait().unwrap().success());
            let got = (got, bill(&lab, &name));
            assert_eq!(&got, expected.get_or_insert_with(|| got.clone()), "{quant}, {ranks} ranks");
        }
    }
}

#[test]
fn what_ranks_cannot_do_is_refused() {
    let lab = lab();
    let second = format!("second={}", lab.at("model").display());
    assert!(refused(&lab, &[&second, "--ranks", "2"]).contains("over several ranks there is one model"));
    assert!(
        refused(&lab, &["--ranks", "2", "--unload-after", "9"]).contains("over several ranks a model stays loaded")
    );
    for adapters in [["--adapter", "a=a"], ["--adapters-dir", "."]] {
        let more = [&["--ranks", "2"][..], &adapters].concat();
        assert!(refused(&lab, &more).contains("over several ranks there are no adapters"));
    }
    assert!(refused(&lab, &["--ranks", "2", "--device", "cuda"]).contains("--device cuda is of a GPU"));
    // What goes wrong before the weights are read ends all of them.
    assert!(refused(&lab, &["--ranks", "3", "--prices", "nowhere.toml"]).contains("nowhere.toml"));
}

#[test]
fn proxies_understand_their_configurations() {
    let lab = Lab::new();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");
    let nginx = ["-t", "-q", "-g", &format!("pid {};", lab.at("pid").display()), "-c"].map(str::to_owned).to_vec();
    let haproxy = ["-c", "-q", "-f"].map(str::to_owned).to_vec();
    for (program, arguments, file) in [("nginx", nginx, "nginx.conf"), ("haproxy", haproxy, "haproxy.cfg")] {
        match Command::new(program).args(arguments).arg(format!("{folder}/{file}")).output() {
            Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
            Err(_) => eprintln!("SKIPPED: there is no {program}"),
        }
    }
}

#[cfg(feature = "mpi")]
mod mpi {
    use super::*;
    use crate::lab::Numbers;
    use crate::serve::{PIECE_TOKENS, count, long_stream, send};
    use std::collections::HashMap;
    use std::io::Write;
    use std::net::TcpStream;
    use std::thread;
    use std::time::{Duration, Instant};
    use wels_server::ledger::Ledger;

    const KILLS: usize = 10;
    const CLIENTS: u64 = 4;

    fn mpirun(ranks: usize) -> Command {
        let mut command = Command::new("mpirun");
        let options =
            "--allow-run-as-root --oversubscribe --bind-to none --enable-recovery --mca mpi_yield_when_idle 1";
        command.args(options.split(' ')).args([
            "-np",
            &ranks.to_string(),
            env!("CARGO_BIN_EXE_wels"),
            "--threads",
            "1",
        ]);
        command
    }

    /// The processes of the ranks that `mpirun` has started, by rank.
    fn ranks_of(server: &Server) -> Vec<u32> {
        let parent_of = |id: u32| -> Option<u32> {
            let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
            stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
        };
        let rank_of = |id: u32| -> Option<usize> {
            let environment = fs::read(format!("/proc/{id}/environ")).ok()?;
            let text = String::from_utf8_lossy(&environment);
            text.split('\0').find_map(|line| line.strip_prefix("OMPI_COMM_WORLD_RANK=")?.parse().ok())
        };
        let ids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let children = ids.filter(|id| parent_of(*id) == Some(server.child.id()));
        let mut ranks: Vec<(usize, u32)> = children.filter_map(|id| Some((rank_of(id)?, id))).collect();
        ranks.sort();
        ranks.into_iter().map(|(_, id)| id).collect()
    }

    fn health(server: &Server) -> String {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }

    fn signal(id: u32, name: &str) {
        assert!(Command::new("kill").args([name, &id.to_string()]).status().unwrap().success());
    }

    /// Waits for its end; how long that took.
    fn end(server: &mut Server, at_most: Duration) -> Duration {
        let begin = Instant::now();
        while server.child.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < at_most, "the server goes on");
            thread::sleep(Duration::from_millis(20));
        }
        begin.elapsed()
    }

    #[test]
    fn processes_give_the_bytes_and_bills_of_one() {
        let lab = lab();
        let prices = prices(&lab);
        let mut expected = None;
        for ranks in [1, 2, 4] {
            let name = format!("ranks-{ranks}");
            let key = lab.wels(&["keys", "add", &name]).trim().to_owned();
            let mut server = lab.serve_by(mpirun(ranks), &["--prices", &prices]);
            let got = answers(&server, &key);
            signal(ranks_of(&server)[0], "-TERM");
            end(&mut server, Duration::from_secs(20));
            let got = (got, bill(&lab, &name));
            assert_eq!(&got, expected.get_or_insert_with(|| got.clone()), "{ranks} ranks");
        }
    }

    #[test]
    fn a_killed_rank_is_told_to_clients_and_the_ledger_is_right() {
        let lab = lab();
        let key = lab.wels(&["keys", "add", "all"]).trim().to_owned();
        let mut numbers = Numbers(11);
        let mut sent: HashMap<String, u64> = HashMap::new();
        for kill in 0..KILLS {
            let mut server = lab.serve_by(mpirun(3), &[]);
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    let (address, key) = (server.address.clone(), key.clone());
                    thread::spawn(move || {
                        let counted = send(&address, &key, &long_stream(client)).map(count).unwrap_or_default();
                        (counted, Instant::now())
                    })
                })
                .collect();
            thread::sleep(Duration::from_millis(200 + numbers.below(400)));
            let ranks = ranks_of(&server);
            assert_eq!(ranks.len(), 3, "kill {kill}");
            signal(ranks[1 + numbers.below(2) as usize], "-KILL");
            let killed = Instant::now();
            for client in clients {
                let ((id, tokens), ended) = client.join().unwrap();
                let after = ended.saturating_duration_since(killed);
                assert!(after < Duration::from_secs(5), "kill {kill}: a client was told after {after:?}");
                assert!(!id.is_empty(), "kill {kill}: a request without an answer");
                assert!(sent.insert(id, tokens).is_none(), "kill {kill}: two requests of one name");
            }
            let mut reply = String::new();
            server.send(&key, &long_stream(9)).read_to_string(&mut reply).unwrap();
            assert!(reply.starts_with("HTTP/1.1 503") && reply.to_lowercase().contains("retry-after"), "{reply}");
            assert!(health(&server).starts_with("HTTP/1.1 503"), "{}", health(&server));
            assert!(killed.elapsed() < Duration::from_secs(6), "{:?}", killed.elapsed());
            end(&mut server, Duration::from_secs(20));
            let log = fs::read_to_string(lab.at("stderr")).unwrap();
            assert!(log.contains("has ended before the others"), "{log}");
        }
        assert!(sent.values().filter(|tokens| **tokens > 0).count() >= KILLS, "kills came before the first tokens");
        // It is back with the same command, and settles what is open.
        let mut server = lab.serve_by(mpirun(3), &[]);
        answers(&server, &key);
        signal(ranks_of(&server)[0], "-TERM");
        end(&mut server, Duration::from_secs(20));
        let mut ledger = Ledger::open(&lab.db()).unwrap();
        let entries = ledger.entries().unwrap();
        for entry in &entries {
            assert!(entry.outcome.is_some(), "{entry:?} is open");
            if let Some(sent) = sent.get(&entry.request) {
                let charged = entry.tokens.output;
                assert!((*sent..=sent + PIECE_TOKENS).contains(&charged), "charged {charged}, sent {sent}: {entry:?}");
            }
        }
        for id in sent.keys() {
            assert_eq!(entries.iter().filter(|entry| entry.request == *id).count(), 1, "{id} is not billed once");
        }
        let key = &ledger.keys().unwrap()[0];
        let charged: i64 = entries.iter().map(|entry| entry.cost.0).sum();
        assert_eq!((key.spent.0, key.reserved.0), (charged, 0));
    }
}
