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
        prices: Prices { hit: Nanos(500_000), miss: Nanos(1_000_000), output: Nanos(2_000_000) },
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
            ledger.progress("a", Tokens { hit: 4, miss: 6, output: 9 }).unwrap();
        }
        let key = again(&mut ledger, &key);
        assert_eq!((key.spent, key.reserved), (Nanos(14), Nanos(0)), "4·0.5 + 6·1 + 3·2");
        let [entry] = &ledger.entries().unwrap()[..] else { panic!("one entry") };
        assert_eq!((entry.tokens.output, entry.cost, entry.outcome.as_deref()), (3, Nanos(14), Some("stop")));
        ledger.admit(&admission("b", &key), 2).unwrap().unwrap();
        let usage = ledger.usage(By::Key, 0, i64::MAX).unwrap();
        assert_eq!((usage.len(), usage[0].requests, usage[0].cost), (1, 2, Nanos(14)));
        ledger.admit(&admission("c", &key), 2).unwrap().unwrap_err();
        ledger.settle("b", "refused", 3).unwrap();
        let usage = ledger.usage(By::Key, 0, i64::MAX).unwrap();
        assert_eq!((usage[0].requests, usage[0].refused, usage[0].cost), (1, 1, Nanos(14)));
        for by in [By::Day, By::Model] {
            assert_eq!(ledger.usage(by, 0, i64::MAX).unwrap()[0].tokens.total(), 13);
        }
        assert!(ledger.usage(By::Key, 3, 4).unwrap().is_empty());
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
        assert_eq!(ledger.admit(&admission("b", &key), 0).unwrap(), Err(Refusal::Concurrent { limit: 1 }));
        ledger.settle("a", "cancelled", 0).unwrap();
        ledger.admit(&admission("b", &key), 0).unwrap().unwrap();
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

#[test]
fn tables_of_another_form_are_refused() {
    on_each(|url| {
        let mut ledger = Ledger::open(url).unwrap();
        ledger.database.script("UPDATE meta SET value = '2' WHERE name = 'schema'").unwrap();
        assert!(matches!(Ledger::open(url), Err(LedgerError::Schema { .. })));
    });
}

#[test]
fn a_file_that_is_no_database_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    std::fs::write(&path, "not a database, but long enough to be looked at".repeat(20)).unwrap();
    assert!(matches!(Ledger::open(path.to_str().unwrap()), Err(LedgerError::Sqlite(_))));
    assert!(matches!(Ledger::open("/nowhere/ledger.db"), Err(LedgerError::Sqlite(_))));
}
