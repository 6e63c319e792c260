//! The same checks on SQLite and, where `WELS_TEST_POSTGRES` names a database, on PostgreSQL.

use super::*;

const SECOND: i64 = 1000;

/// Runs `check` on every database there is, each time with empty tables. The URL is for a second connection.
fn on_each(check: impl Fn(&str)) {
    let folder = tempfile::tempdir().unwrap();
    check(folder.path().join("ledger.db").to_str().unwrap());
    match std::env::var("WELS_TEST_POSTGRES") {
        Ok(url) => {
            // A schema of the test's own, so that tests can run at once.
            let schema = format!("wels_{}", random_id().unwrap());
            let separator = if url.contains('?') { '&' } else { '?' };
            Ledger::connect(&url, false, 1).unwrap().database.script(&format!("CREATE SCHEMA {schema}")).unwrap();
            check(&format!("{url}{separator}options=-csearch_path%3D{schema}"));
            Ledger::connect(&url, false, 1).unwrap().database.script(&format!("DROP SCHEMA {schema} CASCADE")).unwrap();
        }
        Err(_) => eprintln!("SKIPPED on PostgreSQL: WELS_TEST_POSTGRES names no database"),
    }
}

fn key(ledger: &mut Ledger, limits: Limits) -> Key {
    let name = format!("key {}", random_id().unwrap());
    let secret = ledger.add_key(&name, &limits, 0).unwrap();
    ledger.find_key(secret.reveal()).unwrap().unwrap()
}

fn again(ledger: &mut Ledger, key: &Key) -> Key {
    ledger.keys().unwrap().into_iter().find(|other| other.id == key.id).unwrap()
}

/// 10 tokens in and up to 20 out, for 1 and 2 billionths a token: 50 at most.
fn admission(request: &str, key: &Key) -> Admission {
    Admission {
        request: request.to_owned(),
        key_id: key.id,
        endpoint: "/v1/chat/completions".to_owned(),
        model: "tiny".to_owned(),
        prompt_tokens: 10,
        output_tokens_max: 20,
        sequences: 1,
        prices: Prices { hit: Nanos(500_000), miss: Nanos(1_000_000), output: Nanos(2_000_000), drawn: None },
        currency: "USD".to_owned(),
    }
}

#[test]
fn keys_are_made_found_limited_and_revoked() {
    on_each(|url| {
        let mut ledger = Ledger::open(url).unwrap();
        let limits = Limits { requests_per_minute: Some(3), budget: Some(Nanos(7)), ..Limits::default() };
        let secret = ledger.add_key("one", &limits, 5).unwrap();
        let found = ledger.find_key(secret.reveal()).unwrap().unwrap();
        assert_eq!((found.name.as_str(), found.limits, found.created_unix_ms), ("one", limits, 5));
        assert!(ledger.find_key(&format!("{}0", secret.reveal())).unwrap().is_none());
        assert!(matches!(ledger.add_key("one", &limits, 6), Err(LedgerError::NameTaken { .. })));
        ledger.limit_key("one", &Limits::default()).unwrap();
        ledger.revoke_key("one", 8).unwrap();
        ledger.revoke_key("one", 9).unwrap();
        let keys = Ledger::open(url).unwrap().keys().unwrap();
        assert_eq!((keys.len(), keys[0].limits, keys[0].revoked_unix_ms), (1, Limits::default(), Some(8)));
        assert!(matches!(ledger.revoke_key("other", 9), Err(LedgerError::NoKey { .. })));
        assert_eq!(ledger.admit(&admission("r", &keys[0]), 10).unwrap(), Err(Refusal::Revoked));
    });
}

#[test]
fn a_request_is_charged_once_for_what_its_row_holds() {
    on_each(|url| {
        let mut ledger = Ledger::open(url).unwrap();
        let key = key(&mut ledger, Limits { budget: Some(Nanos(80)), ..Limits::default() });
        ledger.admit(&admission("a", &key), 0).unwrap().unwrap();
        assert_eq!(again(&mut ledger, &key).reserved, Nanos(50));
        let refused = ledger.admit(&admission("b", &key), 0).unwrap();
        assert_eq!(refused, Err(Refusal::Budget { needed: Nanos(50), left: Nanos(30) }));
        ledger.progress("a", Tokens { hit: 4, miss: 6, output: 1 }).unwrap();
        ledger.progress("a", Tokens { hit: 4, miss: 6, output: 3 }).unwrap();
        for _ in 0..2 {
            ledger.settle("a", "stop", 1).unwrap();
            assert!(!ledger.progress("a", Tokens { hit: 4, miss: 6, output: 9 }).unwrap(), "nobody pays for these");
            assert!(ledger.progress("a", Tokens { hit: 4, miss: 6, output: 3 }).unwrap(), "these are paid for");
        }
        let key = again(&mut ledger, &key);
        assert_eq!((key.spent, key.reserved), (Nanos(14), Nanos(0)), "4·0.5 + 6·1 + 3·2");
        let [entry] = &ledger.entries().unwrap()[..] else { panic!("one entry") };
        assert_eq!((entry.tokens.output, entry.cost, entry.outcome.as_deref()), (3, Nanos(14), Some("stop")));
        ledger.admit(&admission("b", &key), 2).unwrap().unwrap();
        let usage = ledger.usage(GroupBy::Key, 0, i64::MAX).unwrap();
        assert_eq!((usage.len(), usage[0].requests, usage[0].cost), (1, 2, Nanos(14)));
        ledger.admit(&admission("c", &key), 2).unwrap().unwrap_err();
        ledger.settle("b", "refused", 3).unwrap();
        let usage = ledger.usage(GroupBy::Key, 0, i64::MAX).unwrap();
        assert_eq!((usage[0].requests, usage[0].refused, usage[0].cost), (1, 1, Nanos(14)));
        for by in [GroupBy::Day, GroupBy::Model] {
            assert_eq!(ledger.usage(by, 0, i64::MAX).unwrap()[0].tokens.total(), 13);
        }
        assert!(ledger.usage(GroupBy::Key, 3, 4).unwrap().is_empty());
    });
}

#[test]
fn rates_hold_over_any_minute() {
    on_each(|url| {
        let mut ledger = Ledger::open(url).unwrap();
        let many = key(&mut ledger, Limits { requests_per_minute: Some(2), ..Limits::default() });
        for (request, at) in [("a", 0), ("b", 10 * SECOND)] {
            ledger.admit(&admission(request, &many), at).unwrap().unwrap();
            ledger.settle(request, "stop", at).unwrap();
        }
        let refused = ledger.admit(&admission("c", &many), 20 * SECOND).unwrap();
        assert_eq!(refused, Err(Refusal::Requests { limit: 2, retry_after_ms: 40 * SECOND }));
        ledger.admit(&admission("c", &many), 60 * SECOND).unwrap().unwrap();

        let heavy = key(&mut ledger, Limits { tokens_per_minute: Some(65), ..Limits::default() });
        ledger.admit(&admission("d", &heavy), 0).unwrap().unwrap();
        ledger.admit(&admission("e", &heavy), SECOND).unwrap().unwrap();
        let refused = ledger.admit(&admission("f", &heavy), 2 * SECOND).unwrap();
        let wait = Some(58 * SECOND);
        assert_eq!(refused, Err(Refusal::Tokens { limit: 65, needed: 30, retry_after_ms: wait }));
        ledger.progress("d", Tokens { hit: 0, miss: 10, output: 1 }).unwrap();
        ledger.progress("e", Tokens { hit: 0, miss: 10, output: 1 }).unwrap();
        for request in ["d", "e"] {
            ledger.settle(request, "stop", 2 * SECOND).unwrap();
        }
        ledger.admit(&admission("f", &heavy), 2 * SECOND).unwrap().unwrap();
        let never = Admission { output_tokens_max: 56, ..admission("g", &heavy) };
        let refused = ledger.admit(&never, 100 * SECOND).unwrap();
        assert_eq!(refused, Err(Refusal::Tokens { limit: 65, needed: 66, retry_after_ms: None }));
    });
}

#[test]
fn requests_at_once_are_counted_until_they_are_settled() {
    on_each(|url| {
        let mut ledger = Ledger::open(url).unwrap();
        let key = key(&mut ledger, Limits { concurrent: Some(1), ..Limits::default() });
        ledger.admit(&admission("a", &key), 0).unwrap().unwrap();
        assert_eq!(ledger.admit(&admission("b", &key), 0).unwrap(), Err(Refusal::Concurrent { limit: 1, needed: 1 }));
        ledger.settle("a", "cancelled", 0).unwrap();
        ledger.admit(&admission("b", &key), 0).unwrap().unwrap();
    });
}

#[test]
fn each_answer_of_a_request_counts_as_one_at_once() {
    on_each(|url| {
        let mut ledger = Ledger::open(url).unwrap();
        let key = key(&mut ledger, Limits { concurrent: Some(4), ..Limits::default() });
        let of = |request: &str, sequences: u64| Admission { sequences, ..admission(request, &key) };
        let refused = |needed: u64| Err(Refusal::Concurrent { limit: 4, needed });
        assert_eq!(ledger.admit(&of("a", 16), 0).unwrap(), refused(16));
        ledger.admit(&of("a", 3), 0).unwrap().unwrap();
        assert_eq!(ledger.admit(&of("b", 2), 0).unwrap(), refused(2));
        ledger.admit(&of("b", 1), 0).unwrap().unwrap();
        assert_eq!(ledger.admit(&of("c", 1), 0).unwrap(), refused(1));
        assert_eq!([0, 1, 4, 16].map(|wanted| key.at_once(wanted)), [1, 1, 4, 4]);
    });
}

#[test]
fn a_clock_that_was_set_back_does_not_lock_a_key_out() {
    on_each(|url| {
        let mut ledger = Ledger::open(url).unwrap();
        let key = key(&mut ledger, Limits { requests_per_minute: Some(1), ..Limits::default() });
        let hour = 3600 * SECOND;
        ledger.admit(&admission("a", &key), hour).unwrap().unwrap();
        // Another server's clock may be a little ahead; then the row counts.
        let ahead = ledger.admit(&admission("b", &key), hour - 2 * SECOND).unwrap();
        assert!(matches!(ahead, Err(Refusal::Requests { limit: 1, .. })), "{ahead:?}");
        ledger.admit(&admission("b", &key), hour / 2).unwrap().unwrap();
    });
}

#[test]
fn names_that_no_list_could_show_are_refused() {
    on_each(|url| {
        let mut ledger = Ledger::open(url).unwrap();
        for name in ["", " ", "a ", "a\nb", "\u{1b}[2J", "\u{7f}", &"x".repeat(101)] {
            let made = ledger.add_key(name, &Limits::default(), 0);
            assert!(matches!(made, Err(LedgerError::KeyName { .. })), "{name:?}");
        }
        ledger.add_key("Zoë's key", &Limits::default(), 0).unwrap();
    });
}

#[test]
fn the_files_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (mut ledger, _) = Ledger::serve(folder.path().join("ledger.db").to_str().unwrap(), 0).unwrap();
    key(&mut ledger, Limits::default());
    let mut seen = 0;
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", entry.path());
        seen += 1;
    }
    assert!(seen >= 3, "database, lock and journal");
}

#[test]
fn tables_of_earlier_forms_get_what_they_lack() {
    on_each(|url| {
        let mut ledger = Ledger::open(url).unwrap();
        let key = key(&mut ledger, Limits { concurrent: Some(1), ..Limits::default() });
        ledger.admit(&admission("a", &key), 0).unwrap().unwrap();
        let second = "ALTER TABLE keys DROP COLUMN admin; UPDATE meta SET value = '2' WHERE name = 'schema'";
        let first = "ALTER TABLE requests DROP COLUMN sequences; UPDATE meta SET value = '1' WHERE name = 'schema'";
        for before in [second.to_owned(), format!("{second}; {first}")] {
            ledger.database.script(&before).unwrap();
            ledger = Ledger::open(url).unwrap();
            assert_eq!((ledger.keys().unwrap()[0].admin, ledger.entries().unwrap().len()), (false, 1));
        }
        let refused = ledger.admit(&admission("b", &key), 0).unwrap();
        assert_eq!(refused, Err(Refusal::Concurrent { limit: 1, needed: 1 }), "the open row counts as one");
    });
}

#[test]
fn the_next_server_settles_what_a_dead_one_left_open() {
    on_each(|url| {
        let (mut first, recovered) = Ledger::serve(url, 0).unwrap();
        assert_eq!(recovered, 0);
        let key = key(&mut first, Limits::default());
        first.in_transaction(Durability::Machine, |ledger| ledger.admit(&admission("a", &key), 0)).unwrap().unwrap();
        let sent = Tokens { hit: 0, miss: 10, output: 2 };
        first.in_transaction(Durability::Process, |ledger| ledger.progress("a", sent)).unwrap();
        if is_postgres(url) {
            assert_eq!(Ledger::serve(url, 1).unwrap().1, 0, "the first server is alive");
        } else {
            assert!(matches!(Ledger::serve(url, 1), Err(LedgerError::InUse { .. })));
        }
        drop(first);
        let (mut second, recovered) = Ledger::serve(url, 1).unwrap();
        assert_eq!(recovered, 1);
        assert_eq!(again(&mut second, &key).spent, Nanos(14));
        assert_eq!(second.entries().unwrap()[0].outcome.as_deref(), Some("interrupted"));
        drop(second);
        assert_eq!(Ledger::serve(url, 2).unwrap().1, 0);
    });
}

/// A server whose connection is lost for a moment is taken for dead by one that starts meanwhile. What it then has to
/// say of its requests must not be sent: they are closed.
#[test]
fn a_server_that_was_taken_for_dead_notices() {
    on_each(|url| {
        if !is_postgres(url) {
            return; // a file has one server
        }
        let (mut first, _) = Ledger::serve(url, 0).unwrap();
        let key = key(&mut first, Limits::default());
        for request in ["a", "b"] {
            first.in_transaction(Durability::Machine, |l| l.admit(&admission(request, &key), 0)).unwrap().unwrap();
        }
        cut_off(url, first.session);
        let (_second, recovered) = Ledger::serve(url, 1).unwrap();
        assert_eq!(recovered, 2);
        let sent = Tokens { hit: 0, miss: 10, output: 2000 };
        assert!(first.progress("a", sent).is_err(), "the connection is lost");
        first.reconnect().unwrap();
        assert!(!first.progress("a", sent).unwrap(), "the row is closed");
        let (handle, _) = LedgerHandle::start(first).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert_eq!(runtime.block_on(handle.progress("b", sent)), Err(LedgerHandleError::Closed));
    });
}

/// Ends the connection as an administrator does.
fn cut_off(url: &str, session: i64) {
    let sql = format!("SELECT CASE WHEN pg_terminate_backend({session}) THEN CAST(1 AS BIGINT) END");
    assert_eq!(Ledger::open(url).unwrap().database.query(&sql, &[]).unwrap()[0].int(0).unwrap(), 1);
}

#[test]
fn what_is_written_after_a_lost_connection_is_not_lost() {
    on_each(|url| {
        if !is_postgres(url) {
            return;
        }
        let (mut ledger, _) = Ledger::serve(url, 0).unwrap();
        let key = key(&mut ledger, Limits { concurrent: Some(1), ..Limits::default() });
        let session = ledger.session;
        let (handle, _) = LedgerHandle::start(ledger).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        cut_off(url, session);
        runtime.block_on(handle.admit(admission("a", &key))).unwrap().unwrap();
        runtime.block_on(handle.progress("a", Tokens { hit: 0, miss: 10, output: 2 })).unwrap();
        handle.settle("a".to_owned(), "done");
        runtime.block_on(handle.flush());
        assert!(handle.is_healthy());
        let mut other = Ledger::open(url).unwrap();
        assert_eq!(again(&mut other, &key).spent, Nanos(14));
        assert_eq!(Ledger::serve(url, 1).unwrap().1, 0, "it is alive again for others");
    });
}

/// A server's batch locks one key and waits for a second one, whose holder then waits for the first: PostgreSQL takes
/// back the transaction of the one that has waited the longest, which is the batch.
#[test]
fn a_batch_that_met_another_servers_is_done_again() {
    on_each(|url| {
        if !is_postgres(url) {
            return; // SQLite lets one write at a time
        }
        let pause = |ms: u64| std::thread::sleep(std::time::Duration::from_millis(ms));
        let (mut ledger, _) = Ledger::serve(url, 0).unwrap();
        let keys = [(); 3].map(|()| key(&mut ledger, Limits::default()));
        let (handle, _) = LedgerHandle::start(ledger).unwrap();
        let lock = |other: &mut Ledger, key: &Key| {
            other.database.query("SELECT id FROM keys WHERE id = $1 FOR UPDATE", &[key.id.into()]).map(|_| ())
        };
        let [mut gate, mut other] = [(); 2].map(|()| Ledger::open(url).unwrap());
        for (holder, key) in [(&mut gate, &keys[2]), (&mut other, &keys[1])] {
            holder.database.begin(Durability::Machine).unwrap();
            lock(holder, key).unwrap();
        }
        std::thread::scope(|scope| {
            let admit = |name: &'static str, key: &Key| {
                let (handle, admission) = (handle.clone(), admission(name, key));
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(handle.admit(admission))
                })
            };
            // The thread waits at the gate until two more requests have come, which are then one batch.
            let mut admitted = Vec::new();
            for (name, key) in [("c", &keys[2]), ("a", &keys[0]), ("b", &keys[1])] {
                admitted.push(admit(name, key));
                pause(200);
            }
            gate.database.commit().unwrap();
            pause(300);
            // If this one is taken back after all, on a busy machine, the batch goes on all the same.
            let _ = lock(&mut other, &keys[0]).and_then(|()| other.database.commit());
            other.database.rollback();
            for thread in admitted {
                assert!(matches!(thread.join().unwrap(), Ok(Ok(_))));
            }
        });
        assert!(handle.is_healthy());
    });
}

#[test]
fn tables_of_another_form_are_refused() {
    on_each(|url| {
        let mut ledger = Ledger::open(url).unwrap();
        ledger.database.script("UPDATE meta SET value = '99' WHERE name = 'schema'").unwrap();
        assert!(matches!(Ledger::open(url), Err(LedgerError::Schema { .. })));
    });
}

/// Passes bytes between clients and a database until it is told to hold them back, as a stopped server does: what is
/// sent is acknowledged, and nothing comes.
struct Proxy {
    address: std::net::SocketAddr,
    stopped: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Proxy {
    fn to(target: String) -> Proxy {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, stopped) = (listener.local_addr().unwrap(), std::sync::Arc::default());
        let flag = std::sync::Arc::clone(&stopped);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = std::net::TcpStream::connect(&target) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let flag = std::sync::Arc::clone(&flag);
                    std::thread::spawn(move || pass(from, to, &flag));
                }
            }
        });
        Proxy { address, stopped }
    }

    fn stop(&self, stopped: bool) {
        self.stopped.store(stopped, std::sync::atomic::Ordering::SeqCst);
    }
}

fn pass(mut from: std::net::TcpStream, mut to: std::net::TcpStream, stopped: &std::sync::atomic::AtomicBool) {
    use std::io::{Read, Write};
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        while stopped.load(std::sync::atomic::Ordering::SeqCst) {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

#[test]
fn a_database_that_hangs_is_noticed_and_found_again() {
    on_each(|url| {
        let Some(rest) = url.strip_prefix("postgres://") else { return };
        let (user, rest) = rest.split_once('@').unwrap();
        let (target, rest) = rest.split_once('/').unwrap();
        let proxy = Proxy::to(target.to_owned());
        let (mut ledger, _) = Ledger::serve(&format!("postgres://{user}@{}/{rest}", proxy.address), 0).unwrap();
        let key = key(&mut ledger, Limits::default());
        let (handle, _) = LedgerHandle::start(ledger).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(handle.admit(admission("a", &key))).unwrap().unwrap();
        assert!(handle.is_healthy());
        proxy.stop(true);
        let begin = std::time::Instant::now();
        let sent = Tokens { hit: 0, miss: 10, output: 2 };
        assert_eq!(runtime.block_on(handle.progress("a", sent)), Err(LedgerHandleError::Down));
        assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
        assert!(!handle.is_healthy());
        proxy.stop(false);
        while !handle.is_healthy() {
            assert!(begin.elapsed().as_secs() < 60, "never found again");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        runtime.block_on(handle.progress("a", sent)).unwrap();
    });
}

#[test]
fn a_server_that_says_nothing_is_no_database() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let begin = std::time::Instant::now();
    let url = format!("postgres://wels@{}/wels", listener.local_addr().unwrap());
    assert!(matches!(Ledger::open(&url), Err(LedgerError::Silent | LedgerError::Postgres(_))));
    assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
}

#[test]
fn a_file_that_is_no_database_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    std::fs::write(&path, "not a database, but long enough to be looked at".repeat(20)).unwrap();
    assert!(matches!(Ledger::open(path.to_str().unwrap()), Err(LedgerError::Sqlite(_))));
    assert!(matches!(Ledger::open("/nowhere/ledger.db"), Err(LedgerError::Sqlite(_))));
}
