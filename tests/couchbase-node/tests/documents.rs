//! The behaviours that the SDK's own tests of documents expect, on our nodes or on a real cluster.

mod support;

use std::time::{Duration, SystemTime};

use couchbase::error::ErrorKind;
use couchbase::options::kv_binary_options::{DecrementOptions, IncrementOptions};
use couchbase::options::kv_options::{
    GetOptions, InsertOptions, MutateInOptions, RemoveOptions, ReplaceOptions, StoreSemantics,
    UnlockOptions, UpsertOptions,
};
use couchbase::subdoc::lookup_in_specs::{GetSpecOptions, LookupInSpec};
use couchbase::subdoc::macros::{LookupInMacros, MutateInMacros};
use couchbase::subdoc::mutate_in_specs::MutateInSpec;
use couchbase::transcoding;
use serde_json::{Value, json};
use tokio::time::timeout;

use support::{anywhere, never, new_key};

#[test]
fn what_is_written_is_read() {
    anywhere(async |place| {
        let (collection, key) = (place.collection(), new_key());
        collection.upsert(&key, "test", None).await.unwrap();
        assert_eq!(
            collection.get(&key, None).await.unwrap().content_as::<String>().unwrap(),
            "test"
        );
    });
}

#[test]
fn a_get_that_is_given_up_does_not_disturb_the_next() {
    anywhere(async |place| {
        let (collection, key) = (place.collection(), new_key());
        collection.upsert(&key, "test", None).await.unwrap();
        let given_up = timeout(Duration::from_nanos(1), collection.get(&key, None)).await;
        drop(given_up);
        assert_eq!(
            collection.get(&key, None).await.unwrap().content_as::<String>().unwrap(),
            "test"
        );
    });
}

#[test]
fn bytes_that_are_no_json_come_back_as_they_were_with_their_flags() {
    anywhere(async |place| {
        let (collection, key) = (place.collection(), new_key());
        let (content, flags) = transcoding::raw_binary::encode(b"\x00\xffbytes").unwrap();
        collection.upsert_raw(&key, content, flags, None).await.unwrap();
        let got = collection.get(&key, None).await.unwrap();
        let (raw, got_flags) = got.content_as_raw();
        assert_eq!((raw, got_flags), (&b"\x00\xffbytes"[..], flags));
    });
}

#[test]
fn a_long_document_comes_back_through_compression() {
    anywhere(async |place| {
        let (collection, key) = (place.collection(), new_key());
        let long = json!({"text": "again and again ".repeat(1000)});
        collection.upsert(&key, &long, None).await.unwrap();
        assert_eq!(collection.get(&key, None).await.unwrap().content_as::<Value>().unwrap(), long);
    });
}

#[test]
fn insert_refuses_a_key_that_is_there() {
    anywhere(async |place| {
        let (collection, key) = (place.collection(), new_key());
        collection.insert(&key, "first", None).await.unwrap();
        let refusal = collection.insert(&key, "second", None).await.unwrap_err();
        assert_eq!(refusal.kind(), &ErrorKind::DocumentExists);
        assert_eq!(
            collection.get(&key, None).await.unwrap().content_as::<String>().unwrap(),
            "first"
        );
    });
}

#[test]
fn replace_and_remove_heed_the_version() {
    anywhere(async |place| {
        let (collection, key) = (place.collection(), new_key());
        let missing = collection.replace(&key, "x", None).await.unwrap_err();
        assert_eq!(missing.kind(), &ErrorKind::DocumentNotFound);
        let first = collection.insert(&key, "first", None).await.unwrap().cas();
        let second = collection
            .replace(&key, "second", ReplaceOptions::new().cas(first))
            .await
            .unwrap()
            .cas();
        assert_ne!(first, second);
        let stale = collection.replace(&key, "x", ReplaceOptions::new().cas(first)).await;
        assert_eq!(stale.unwrap_err().kind(), &ErrorKind::CasMismatch);
        let stale = collection.remove(&key, RemoveOptions::new().cas(first)).await;
        assert_eq!(stale.unwrap_err().kind(), &ErrorKind::CasMismatch);
        collection.remove(&key, RemoveOptions::new().cas(second)).await.unwrap();
        let gone = collection.get(&key, None).await.unwrap_err();
        assert_eq!(gone.kind(), &ErrorKind::DocumentNotFound);
    });
}

#[test]
fn exists_says_so_and_stops_saying_so() {
    anywhere(async |place| {
        let (collection, key) = (place.collection(), new_key());
        collection.insert(&key, "test", None).await.unwrap();
        assert!(collection.exists(&key, None).await.unwrap().exists());
        collection.remove(&key, None).await.unwrap();
        assert!(!collection.exists(&key, None).await.unwrap().exists());
    });
}

#[test]
fn a_touched_document_stays_and_says_how_long() {
    anywhere(async |place| {
        let (collection, key) = (place.collection(), new_key());
        collection.insert(&key, "test", None).await.unwrap();
        collection.touch(&key, Duration::from_secs(10), None).await.unwrap();
        let got = collection.get_and_touch(&key, Duration::from_secs(30), None).await.unwrap();
        assert_eq!(got.content_as::<String>().unwrap(), "test");
        let got = collection.get(&key, GetOptions::new().expiry(true)).await.unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let expiry = u64::try_from(got.expiry_time().unwrap().timestamp()).unwrap();
        assert!((now + 28..=now + 31).contains(&expiry), "{expiry} at {now}");
        assert_eq!(got.content_as::<String>().unwrap(), "test");
    });
}

#[test]
fn a_replace_without_an_expiry_ends_it_unless_it_is_kept() {
    anywhere(async |place| {
        let (collection, key) = (place.collection(), new_key());
        let expiry = UpsertOptions::new().expiry(Duration::from_secs(100));
        collection.upsert(&key, "test", expiry).await.unwrap();
        collection
            .replace(&key, "kept", ReplaceOptions::new().preserve_expiry(true))
            .await
            .unwrap();
        let got = collection.get(&key, GetOptions::new().expiry(true)).await.unwrap();
        assert!(got.expiry_time().is_some_and(|time| time.timestamp() > 0));
        collection.replace(&key, "for ever", None).await.unwrap();
        let got = collection.get(&key, GetOptions::new().expiry(true)).await.unwrap();
        // The SDK shows a document without an expiry as one of 1970.
        assert!(got.expiry_time().is_none_or(|time| time.timestamp() == 0));
    });
}

#[test]
fn a_locked_document_is_changed_by_its_holder_alone() {
    anywhere(async |place| {
        let (collection, key) = (place.collection(), new_key());
        collection.insert(&key, "test", None).await.unwrap();
        let locked = collection.get_and_lock(&key, Duration::from_secs(10), None).await.unwrap();
        assert_eq!(locked.content_as::<String>().unwrap(), "test");
        let options = UpsertOptions::new().retry_strategy(never());
        let refusal = collection.upsert(&key, "x", options).await.unwrap_err();
        assert_eq!(refusal.kind(), &ErrorKind::DocumentLocked);
        // With the SDK's own strategy it goes on for as long as one waits.
        let endless = timeout(Duration::from_millis(500), collection.upsert(&key, "x", None)).await;
        assert!(endless.is_err());
        collection.unlock(&key, locked.cas(), None).await.unwrap();
        let again = collection
            .unlock(&key, locked.cas(), UnlockOptions::new().retry_strategy(never()))
            .await;
        assert_eq!(again.unwrap_err().kind(), &ErrorKind::DocumentNotLocked);
        collection.upsert(&key, "free", None).await.unwrap();
    });
}

#[test]
fn bytes_are_added_at_both_ends() {
    anywhere(async |place| {
        let (collection, key) = (place.collection(), new_key());
        let (content, flags) = transcoding::raw_binary::encode(b"test").unwrap();
        collection.insert_raw(&key, content, flags, None).await.unwrap();
        collection.binary().append(&key, b"append", None).await.unwrap();
        collection.binary().prepend(&key, b"prepend", None).await.unwrap();
        let got = collection.get(&key, None).await.unwrap();
        let (raw, flags) = got.content_as_raw();
        assert_eq!(transcoding::raw_binary::decode(raw, flags).unwrap(), b"prependtestappend");
    });
}

#[test]
fn counters_go_up_and_down_and_not_below_zero() {
    anywhere(async |place| {
        let (collection, key) = (place.collection(), new_key());
        let missing =
            collection.binary().increment(&key, IncrementOptions::new().delta(1_u64)).await;
        assert_eq!(missing.unwrap_err().kind(), &ErrorKind::DocumentNotFound);
        let start = IncrementOptions::new().delta(1_u64).initial(5_u64);
        assert_eq!(collection.binary().increment(&key, start.clone()).await.unwrap().content(), 5);
        assert_eq!(collection.binary().increment(&key, start).await.unwrap().content(), 6);
        let down = DecrementOptions::new().delta(10_u64);
        assert_eq!(collection.binary().decrement(&key, down).await.unwrap().content(), 0);
        assert_eq!(collection.get(&key, None).await.unwrap().content_as::<u64>().unwrap(), 0);
        collection.upsert(&key, "no number", None).await.unwrap();
        let refusal =
            collection.binary().increment(&key, IncrementOptions::new().delta(1_u64)).await;
        assert_eq!(refusal.unwrap_err().kind(), &ErrorKind::DeltaInvalid);
    });
}

#[test]
fn parts_are_looked_up_with_what_the_cluster_knows_of_the_document() {
    anywhere(async |place| {
        let (collection, key) = (place.collection(), new_key());
        let document = json!({"arr": [1, 2, 3], "bar": 2, "baz": "hello", "foo": 14});
        collection.upsert(&key, &document, None).await.unwrap();
        let specs = [
            LookupInSpec::get("baz", None),
            LookupInSpec::exists("not-exists", None),
            LookupInSpec::count("arr", None),
            LookupInSpec::get(LookupInMacros::IsDeleted, GetSpecOptions::new().xattr(true)),
            LookupInSpec::get("", None),
        ];
        let got = collection.lookup_in(&key, &specs, None).await.unwrap();
        assert_eq!(got.content_as::<String>(0).unwrap(), "hello");
        assert!(got.exists(0).unwrap());
        assert!(!got.exists(1).unwrap());
        assert_eq!(got.content_as::<u32>(2).unwrap(), 3);
        assert!(!got.content_as::<bool>(3).unwrap());
        assert_eq!(got.content_as_raw(4).unwrap(), serde_json::to_vec(&document).unwrap());
    });
}

#[test]
fn parts_are_changed_all_or_none() {
    anywhere(async |place| {
        let (collection, key) = (place.collection(), new_key());
        collection
            .upsert(&key, json!({"arr": [3], "bar": 2, "baz": "hello", "foo": 14}), None)
            .await
            .unwrap();
        let specs = [
            MutateInSpec::decrement("bar", 1, None).unwrap(),
            MutateInSpec::increment("bar", 2, None).unwrap(),
            MutateInSpec::upsert("baz", "world", None).unwrap(),
            MutateInSpec::insert("my-cas", MutateInMacros::CAS, None).unwrap(),
            MutateInSpec::array_prepend("arr", &[1, 2], None).unwrap(),
            MutateInSpec::array_append("arr", &[5, 6], None).unwrap(),
        ];
        let changed = collection.mutate_in(&key, &specs, None).await.unwrap();
        assert_eq!(changed.entries().len(), 6);
        assert!(changed.mutation_token().is_some());
        assert_ne!(changed.cas(), 0);
        assert_eq!(changed.content_as::<u32>(0).unwrap(), 1);
        assert_eq!(changed.content_as::<u32>(1).unwrap(), 3);
        let expected = json!({"arr": [1, 2, 3, 5, 6], "bar": 3, "baz": "world", "foo": 14});
        let got = collection.get(&key, None).await.unwrap();
        assert_eq!(got.content_as::<Value>().unwrap(), expected);

        let specs = [
            MutateInSpec::upsert("baz", "lost", None).unwrap(),
            MutateInSpec::insert("foo", 1, None).unwrap(),
        ];
        let refusal = collection.mutate_in(&key, &specs, None).await.unwrap_err();
        assert_eq!(refusal.kind(), &ErrorKind::PathExists);
        let got = collection.get(&key, None).await.unwrap();
        assert_eq!(got.content_as::<Value>().unwrap(), expected);

        let stale = MutateInOptions::new().cas(1);
        let specs = [MutateInSpec::upsert("baz", "lost", None).unwrap()];
        let refusal = collection.mutate_in(&key, &specs, stale).await.unwrap_err();
        assert_eq!(refusal.kind(), &ErrorKind::CasMismatch);
    });
}

#[test]
fn a_change_of_parts_makes_the_document_when_it_may() {
    anywhere(async |place| {
        let (collection, key) = (place.collection(), new_key());
        let specs = [MutateInSpec::upsert("n", 1, None).unwrap()];
        let refusal = collection.mutate_in(&key, &specs, None).await.unwrap_err();
        assert_eq!(refusal.kind(), &ErrorKind::DocumentNotFound);
        let upsert = MutateInOptions::new().store_semantics(StoreSemantics::Upsert);
        collection.mutate_in(&key, &specs, upsert).await.unwrap();
        let insert = MutateInOptions::new().store_semantics(StoreSemantics::Insert);
        let refusal = collection.mutate_in(&key, &specs, insert).await.unwrap_err();
        assert_eq!(refusal.kind(), &ErrorKind::DocumentExists);
        let got = collection.get(&key, None).await.unwrap();
        assert_eq!(got.content_as::<Value>().unwrap(), json!({"n": 1}));
    });
}

#[test]
fn projections_bring_the_fields_that_are_asked_for() {
    anywhere(async |place| {
        let (collection, key) = (place.collection(), new_key());
        let document = json!({
            "name": "Emmy", "age": 26, "animals": ["cat", "dog", "parrot"],
            "attributes": {"hair": "brown", "hobbies": [{"type": "winter"}, {"type": "summer", "name": "sailing"}]},
            "tracking": {"raw": [[1, 2], [3, 4]]},
        });
        collection.upsert(&key, &document, None).await.unwrap();
        let cases = [
            ("name", json!({"name": "Emmy"})),
            ("animals[1]", json!({"animals": ["dog"]})),
            ("attributes.hair", json!({"attributes": {"hair": "brown"}})),
            (
                "attributes.hobbies[1].name",
                json!({"attributes": {"hobbies": [{"name": "sailing"}]}}),
            ),
            ("tracking.raw[1][1]", json!({"tracking": {"raw": [[4]]}})),
        ];
        for (path, expected) in cases {
            let options = GetOptions::new().projections(vec![path.to_owned()]);
            let got = collection.get(&key, options).await.unwrap();
            assert_eq!(got.content_as::<Value>().unwrap(), expected, "{path}");
        }
    });
}

#[test]
fn a_document_or_a_key_that_is_too_long_is_refused() {
    anywhere(async |place| {
        let (collection, key) = (place.collection(), new_key());
        let (content, flags) = transcoding::raw_binary::encode(b"").unwrap();
        assert!(content.is_empty());
        let long = noise(20 * 1024 * 1024 + 1);
        let refusal = collection.upsert_raw(&key, &long, flags, None).await.unwrap_err();
        assert_eq!(refusal.kind(), &ErrorKind::ValueTooLarge);
        let refusal = collection.upsert("k".repeat(251), "x", None).await.unwrap_err();
        assert!(matches!(refusal.kind(), ErrorKind::InvalidArgument(_)), "{refusal}");
    });
}

/// Bytes that no compression makes shorter.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_le_bytes()[7]
    });
    next.take(length).collect()
}

#[test]
fn of_many_that_insert_or_replace_at_once_one_wins() {
    anywhere(async |place| {
        let (collection, key) = (place.collection(), new_key());
        let inserts = (0..32).map(|number| {
            let (collection, key) = (collection.clone(), key.clone());
            async move { collection.insert(&key, number, InsertOptions::new()).await.is_ok() }
        });
        let won = futures_util::future::join_all(inserts).await;
        assert_eq!(won.iter().filter(|won| **won).count(), 1);
        let cas = collection.get(&key, None).await.unwrap().cas();
        let replaces = (0..32).map(|number| {
            let (collection, key) = (collection.clone(), key.clone());
            async move { collection.replace(&key, number, ReplaceOptions::new().cas(cas)).await }
        });
        let results = futures_util::future::join_all(replaces).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        let refused = results.iter().filter_map(|result| result.as_ref().err());
        assert!(refused.into_iter().all(|refusal| refusal.kind() == &ErrorKind::CasMismatch));
    });
}
