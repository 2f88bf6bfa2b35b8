//! Requests that are refused at the door: what is wrong with them shows without a look at the directory.

use ecow::eco_format;
use greenroom_protocol::{
    Code, DecodeError, Refusal, UserId,
    search::{FILTER_DEPTH_MAX, LIMIT_MAX},
    wire::client_session::{Create, JoinOrCreate, Rank, Request, Search, Watch},
};

/// Users that one request may keep seats for.
const EXPECTED_MAX: usize = 32;
/// Kind bytes of requests with a filter: [`JoinOrCreate`], [`Search`], [`Watch`].
const FILTERED: [u8; 3] = [0x12, 0x15, 0x16];

/// Whether a request makes sense, as far as that can be said here.
///
/// # Errors
/// [`Code::FilterTooDeep`], [`Code::FilterTooLarge`], [`Code::LimitInvalid`]; [`Code::Malformed`] for too many users.
pub(crate) fn check(request: &Request) -> Result<(), Refusal> {
    match request {
        Request::Create(Create { expected, .. }) => check_expected(expected),
        Request::JoinOrCreate(JoinOrCreate { filter, expected, .. }) => {
            filter.check()?;
            check_expected(expected)
        }
        Request::Search(Search { filter, limit, .. }) => {
            filter.check()?;
            check_limit(*limit)
        }
        Request::Watch(Watch { filter, .. }) => filter.check(),
        Request::Rank(Rank { limit, .. }) => check_limit(*limit),
        Request::Join(_)
        | Request::Leave(_)
        | Request::Destroy(_)
        | Request::Unwatch(_)
        | Request::Unknown(_) => Ok(()),
    }
}

/// Why a request that can't be read is refused. What nests too deep in one with a filter is its filter: there is
/// nothing else in it that nests.
pub(crate) fn not_decoded(kind: u8, error: &DecodeError) -> Refusal {
    if matches!(error, DecodeError::TooDeep { .. }) && FILTERED.contains(&kind) {
        let text = eco_format!(
            "and, or and not are nested more than {FILTER_DEPTH_MAX} deep in the filter"
        );
        return Refusal::new(Code::FilterTooDeep, text);
    }
    error.clone().into()
}

fn check_limit(limit: u16) -> Result<(), Refusal> {
    if (1..=LIMIT_MAX).contains(&limit) {
        return Ok(());
    }
    let text = eco_format!("a limit of {limit}: 1 to {LIMIT_MAX} are found at once");
    Err(Refusal::new(Code::LimitInvalid, text))
}

fn check_expected(expected: &[UserId]) -> Result<(), Refusal> {
    if expected.len() <= EXPECTED_MAX {
        return Ok(());
    }
    let text = eco_format!(
        "seats are to be kept for {} users; {EXPECTED_MAX} are the most",
        expected.len()
    );
    Err(Refusal::new(Code::Malformed, text))
}
