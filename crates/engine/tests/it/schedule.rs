//! Who goes on when: nobody starves, prompts come in chunks, priorities and the cache's size are kept.

use crate::answers::{engine, finish};
use crate::models;
use wels_engine::{Engine, Event, LoadedModel, Options, Request, RequestError, RequestId};
use wels_model::paged::{CacheDtype, CacheLayout, PagedCache};

fn loaded() -> LoadedModel {
    models::loaded(&models::gqa(), 5)
}

fn enqueue(engine: &mut Engine, prompt: Vec<u32>, max_tokens: usize, priority: i32) -> RequestId {
    engine.enqueue(Request { priority, ..Request::new(prompt, max_tokens) }).expect("a sound request")
}

fn of(events: &[Event]) -> Vec<RequestId> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Token(token) => Some(token.id),
            Event::Embedding { .. } | Event::Finished(_) => None,
        })
        .collect()
}

#[test]
fn answers_go_on_in_every_step_while_a_long_prompt_is_computed() {
    let options = Options { max_batch_tokens: 16, ..models::options() };
    let mut engine = engine(&loaded(), options);
    let short = enqueue(&mut engine, vec![1, 2], 40, 0);
    assert_eq!(of(&engine.step()), [short]);
    let long = enqueue(&mut engine, (0..60).collect(), 4, 0);
    // 15 tokens of the prompt a step beside the answer.
    for step in 0..3 {
        assert_eq!(of(&engine.step()), [short], "step {step}");
    }
    assert_eq!(of(&engine.step()), [short, long]);
    assert_eq!(engine.status().counters.computed_tokens, 2 + 4 + 60);
    finish(&mut engine);
}

#[test]
fn the_waiting_begin_by_priority_then_by_age() {
    let mut engine = engine(&loaded(), Options { max_running: 1, ..models::options() });
    let first = enqueue(&mut engine, vec![1], 2, 0);
    engine.step();
    let ids = [(2, 0), (3, 5), (4, 0), (5, -1)].map(|(token, priority)| enqueue(&mut engine, vec![token], 1, priority));
    assert_eq!(engine.status().waiting, [ids[1], ids[0], ids[2], ids[3]]);
    // The one with the higher priority takes the only place; the first goes on after it.
    assert_eq!(of(&engine.step()), [ids[1]]);
    assert_eq!(of(&engine.step()), [first]);
    let order: Vec<RequestId> = (0..3).flat_map(|_| of(&engine.step())).collect();
    assert_eq!(order, [ids[0], ids[2], ids[3]]);
    assert_eq!(engine.status().counters.preemptions, 1);
}

#[test]
fn a_cache_for_one_serves_all_one_after_the_other() {
    let page = PagedCache::bytes_per_page(&models::gqa(), CacheLayout::Expanded, CacheDtype::F32);
    let mut engine = engine(&loaded(), Options { cache_bytes: 3 * page, ..models::options() });
    let ids: Vec<RequestId> = (0..5).map(|i| enqueue(&mut engine, vec![i; 10], 30, 0)).collect();
    let ends = finish(&mut engine);
    let got: Vec<(RequestId, usize)> = ends.iter().map(|(tokens, end)| (end.id, tokens.len())).collect();
    assert_eq!(got, ids.into_iter().map(|id| (id, 30)).collect::<Vec<_>>());
    let status = engine.status();
    assert_eq!((status.pages, status.pages_free + status.pages_cached), (3, 3));
}

#[test]
fn memory_taken_while_idle_changes_nothing() {
    let answers = |idle: bool| {
        let mut engine = engine(&loaded(), Options { cache_bytes: 16 << 20, ..models::options() });
        let mut answers = Vec::new();
        for prompt in 0..3 {
            while idle && engine.populate() {}
            enqueue(&mut engine, vec![prompt; 40], 10, 0);
            answers.push(finish(&mut engine).remove(0).0);
        }
        assert!(!idle || !engine.populate(), "all of so small a cache is there");
        answers
    };
    assert_eq!(answers(true), answers(false));
}

/// When pages are short, too.
#[test]
fn the_more_important_takes_the_pages_of_the_less_important() {
    let page = PagedCache::bytes_per_page(&models::gqa(), CacheLayout::Expanded, CacheDtype::F32);
    let mut engine = engine(&loaded(), Options { cache_bytes: 5 * page, ..models::options() });
    let patient = enqueue(&mut engine, vec![1; 40], 20, 0);
    engine.step();
    let urgent = enqueue(&mut engine, vec![2; 40], 3, 1);
    assert_eq!(of(&engine.step()), [urgent]);
    assert_eq!(engine.status().waiting, [patient]);
    let ends = finish(&mut engine);
    assert_eq!(
        ends.iter().map(|(_, end)| (end.id, end.usage.generated)).collect::<Vec<_>>(),
        [(patient, 20), (urgent, 3)]
    );
}

#[test]
fn a_prompt_that_the_cache_has_is_not_computed_again() {
    let mut engine = engine(&loaded(), models::options());
    let prompt: Vec<u32> = (0..50).collect();
    enqueue(&mut engine, prompt.clone(), 1, 0);
    finish(&mut engine);
    let before = engine.status().counters;
    enqueue(&mut engine, prompt.clone(), 1, 0);
    let (_, end) = finish(&mut engine).remove(0);
    let after = engine.status().counters;
    assert_eq!((end.usage.prompt, end.usage.cached), (50, 48));
    assert_eq!(after.cached_tokens - before.cached_tokens, 48);
    assert_eq!(after.computed_tokens - before.computed_tokens, 2);
    // A whole number of pages: the last token is computed all the same.
    enqueue(&mut engine, prompt[..32].to_vec(), 1, 0);
    assert_eq!(finish(&mut engine)[0].1.usage.cached, 16);
}

#[test]
fn several_answers_to_one_prompt_compute_it_once() {
    let mut engine = engine(&loaded(), Options { max_batch_tokens: 16, ..models::options() });
    let prompt: Vec<u32> = (0..50).collect();
    for choice in 0..4 {
        engine.enqueue(Request { choice, ..Request::new(prompt.clone(), 3) }).expect("a sound request");
    }
    let ends = finish(&mut engine);
    assert_eq!(ends.iter().map(|(_, end)| end.usage.cached).collect::<Vec<_>>(), [0, 48, 48, 48]);
    let texts: Vec<Vec<u32>> = ends.iter().map(|(tokens, _)| tokens.iter().map(|t| t.token).collect()).collect();
    assert!(texts.iter().any(|text| *text != texts[0]), "choices draw other random numbers");
}

#[test]
fn a_prompt_larger_than_the_cache_is_refused() {
    let page = PagedCache::bytes_per_page(&models::gqa(), CacheLayout::Expanded, CacheDtype::F32);
    let mut engine = engine(&loaded(), Options { cache_bytes: 2 * page, ..models::options() });
    let refusal = engine.enqueue(Request::new(vec![1; 32], 1)).expect_err("too long");
    assert_eq!(refusal.to_string(), "the prompt has 32 tokens, and at most 31 fit");
    enqueue(&mut engine, vec![1; 31], 5, 0);
    assert_eq!(finish(&mut engine)[0].0.len(), 1, "until the cache is full");
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let refused = |options: Options| Engine::new(loaded(), options).err().expect("a refusal").to_string();
    assert_eq!(refused(Options { max_running: 0, ..models::options() }), "max_running: must be at least 1");
    assert_eq!(refused(Options { max_batch_tokens: 8, ..models::options() }), "max_batch_tokens: must be at least 16");
    assert!(refused(Options { cache_bytes: 100, ..models::options() }).starts_with("cache_bytes: a page takes"));
    let latent = Options { layout: CacheLayout::Latent, ..models::options() };
    assert_eq!(refused(latent), "layout: this model has no latents");
}

fn enqueue_of(engine: &mut Engine, owner: u64, max_tokens: usize) -> RequestId {
    let request = Request { owner, ..Request::new(vec![owner as u32], max_tokens) };
    engine.enqueue(request).expect("a sound request")
}

#[test]
fn owners_share_the_places_whatever_each_asks_for() {
    let mut engine = engine(&loaded(), Options { max_running: 4, ..models::options() });
    let first: Vec<RequestId> = (0..12).map(|_| enqueue_of(&mut engine, 1, 9)).collect();
    assert_eq!(of(&engine.step()), first[..4]);
    // One that comes later takes a place at once, the last one's.
    let alone = enqueue_of(&mut engine, 2, 9);
    assert_eq!(of(&engine.step()), [first[0], alone, first[1], first[2]]);
    assert_eq!(engine.status().waiting[0], first[3]);
    let others: Vec<RequestId> = (0..12).map(|_| enqueue_of(&mut engine, 3, 9)).collect();
    assert_eq!(of(&engine.step()), [first[0], alone, others[0], first[1]]);
    assert_eq!(engine.status().counters.preemptions, 2);
    engine.cancel(alone);
    let owned = |ids: &[RequestId], step: &[RequestId]| step.iter().filter(|id| ids.contains(id)).count();
    let mut ended = 0;
    while ended < 18 {
        let events = engine.step();
        let step = of(&events);
        assert_eq!((owned(&first, &step), owned(&others, &step)), (2, 2), "after {ended}");
        ended += events.iter().filter(|event| matches!(event, Event::Finished(_))).count();
    }
    assert_eq!(ended + finish(&mut engine).len(), 25);
}

#[test]
fn owners_take_turns_at_one_place() {
    let mut engine = engine(&loaded(), Options { max_running: 1, ..models::options() });
    let ids = [1, 1, 1, 2, 2, 2, 3].map(|owner| enqueue_of(&mut engine, owner, 1));
    let order: Vec<RequestId> = (0..7).flat_map(|_| of(&engine.step())).collect();
    assert_eq!(order, [0, 3, 6, 1, 4, 2, 5].map(|at| ids[at]));
}

#[test]
fn an_owner_leaves_room_in_the_queue_for_others() {
    let mut engine = engine(&loaded(), Options { max_waiting: 16, waiting_kept: 2, ..models::options() });
    let full = |engine: &mut Engine, owner: u64| {
        let request = Request { owner, ..Request::new(vec![1], 1) };
        engine.enqueue(request).err() == Some(RequestError::QueueFull { waiting: engine.status().waiting.len() })
    };
    (0..14).for_each(|_| assert!(!full(&mut engine, 1)));
    assert!(full(&mut engine, 1));
    assert!(!full(&mut engine, 2) && full(&mut engine, 2));
    assert!(!full(&mut engine, 3) && full(&mut engine, 4));
}
