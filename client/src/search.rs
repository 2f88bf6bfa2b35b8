//! What the directory can be asked for: searches, live searches, rank boards.

use std::future::IntoFuture;

use ecow::EcoString;
use greenroom_protocol::{
    UserId,
    search::{Filter, Order},
    wire::{
        Opaque,
        client_session::{self, Found, RankPart, Ranking},
    },
};

use crate::{
    Client, ClientError, Watch,
    client::{Boxed, kind_name, mismatch},
    session::Done,
};

/// How many are asked for when nothing else is said.
const LIMIT: u16 = 20;

impl Client {
    /// Looks for instances of a kind; without a filter, all that can be found. Await what this gives.
    ///
    /// The answer shows every write that was acknowledged before the question.
    pub fn search(&self, kind: &str) -> Search<'_> {
        Search {
            client: self,
            kind: kind.into(),
            filter: Ok(Filter::default()),
            order_by: None,
            descending: false,
            limit: LIMIT,
            cursor: None,
            explain: false,
        }
    }

    /// Looks for instances of a kind, and goes on telling what changes. Await what this gives.
    pub fn watch(&self, kind: &str) -> StartWatch<'_> {
        StartWatch { client: self, kind: kind.into(), filter: Ok(Filter::default()) }
    }

    /// Reads a rank board: without more, its 20 best. Await what this gives.
    pub fn rank(&self, board: &str) -> Rank<'_> {
        Rank { client: self, board: board.into(), part: RankPart::From(1), limit: LIMIT }
    }
}

/// What was asked for before, and also what is asked for with `more`.
pub(crate) fn narrow(filter: &mut Result<Filter, ClientError>, more: Result<Filter, ClientError>) {
    match (&mut *filter, more) {
        (Ok(all), Ok(more)) => *all = std::mem::take(all).and(more),
        (Ok(_), Err(error)) => *filter = Err(error),
        (Err(_), _) => {}
    }
}

/// A filter as it is written.
pub(crate) fn read(text: &str) -> Result<Filter, ClientError> {
    Filter::parse(text).map_err(ClientError::Filter)
}

/// A [`Client::search`] that is not yet under way.
#[derive(Debug)]
#[must_use = "nothing happens before it is awaited"]
pub struct Search<'a> {
    client: &'a Client,
    kind: EcoString,
    filter: Result<Filter, ClientError>,
    order_by: Option<EcoString>,
    descending: bool,
    limit: u16,
    cursor: Option<Opaque>,
    explain: bool,
}

impl Search<'_> {
    /// Only those that this lets through, and every filter that was given before.
    pub fn filter(mut self, filter: impl Into<Filter>) -> Self {
        narrow(&mut self.filter, Ok(filter.into()));
        self
    }
    /// As [`Self::filter`], from a text: `mode = "ranked" and rating between 1400 and 1600`.
    pub fn filter_text(mut self, text: &str) -> Self {
        narrow(&mut self.filter, read(text));
        self
    }
    /// In the order of this field, from the smallest to the largest; without it, by id.
    pub fn order_by(mut self, field: impl Into<EcoString>) -> Self {
        self.order_by = Some(field.into());
        self
    }
    /// From the largest to the smallest, together with [`Self::order_by`].
    pub fn descending(mut self) -> Self {
        self.descending = true;
        self
    }
    /// This many at most, 1 to 100; 20 if it is not said.
    pub const fn limit(mut self, limit: u16) -> Self {
        self.limit = limit;
        self
    }
    /// What follows the answer that had this [`Found::cursor`], of the same search; from the beginning with `None`.
    pub fn cursor(mut self, cursor: impl Into<Option<Opaque>>) -> Self {
        self.cursor = cursor.into();
        self
    }
    /// Says how it was answered, in [`Found::explain`].
    pub const fn explain(mut self) -> Self {
        self.explain = true;
        self
    }
}

impl<'a> IntoFuture for Search<'a> {
    type Output = Result<Found, ClientError>;
    type IntoFuture = Boxed<'a, Found>;
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let descending = self.descending;
            let request = client_session::Search {
                kind: kind_name(&self.kind)?,
                filter: self.filter?,
                order: self.order_by.map(|field| Order { field, descending }),
                limit: self.limit,
                cursor: self.cursor,
                explain: self.explain,
            };
            let Done::Found(found) = self.client.request(request.into()).await? else {
                return Err(mismatch());
            };
            Ok(found)
        })
    }
}

/// A [`Client::watch`] that is not yet under way.
#[derive(Debug)]
#[must_use = "nothing happens before it is awaited"]
pub struct StartWatch<'a> {
    client: &'a Client,
    kind: EcoString,
    filter: Result<Filter, ClientError>,
}

impl StartWatch<'_> {
    /// Only those that this lets through, and every filter that was given before.
    pub fn filter(mut self, filter: impl Into<Filter>) -> Self {
        narrow(&mut self.filter, Ok(filter.into()));
        self
    }
    /// As [`Self::filter`], from a text.
    pub fn filter_text(mut self, text: &str) -> Self {
        narrow(&mut self.filter, read(text));
        self
    }
}

impl<'a> IntoFuture for StartWatch<'a> {
    type Output = Result<Watch, ClientError>;
    type IntoFuture = Boxed<'a, Watch>;
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let request =
                client_session::Watch { kind: kind_name(&self.kind)?, filter: self.filter? };
            let Done::Watching(hold) = self.client.request(request.into()).await? else {
                return Err(mismatch());
            };
            Ok(Watch::new(hold, self.client.clone()))
        })
    }
}

/// A [`Client::rank`] that is not yet under way.
#[derive(Debug)]
#[must_use = "nothing happens before it is awaited"]
pub struct Rank<'a> {
    client: &'a Client,
    board: EcoString,
    part: RankPart,
    limit: u16,
}

impl Rank<'_> {
    /// The best: this many, 1 to 100.
    pub fn top(mut self, limit: u16) -> Self {
        (self.part, self.limit) = (RankPart::From(1), limit);
        self
    }
    /// From this rank on; 1 is the best.
    pub fn from(mut self, rank: u64) -> Self {
        self.part = RankPart::From(rank);
        self
    }
    /// This user in the middle.
    pub fn around(mut self, user: UserId) -> Self {
        self.part = RankPart::Around(Some(user));
        self
    }
    /// The caller in the middle of this many, 1 to 100.
    pub fn around_me(mut self, limit: u16) -> Self {
        (self.part, self.limit) = (RankPart::Around(None), limit);
        self
    }
    /// This many at most, 1 to 100; 20 if it is not said.
    pub const fn limit(mut self, limit: u16) -> Self {
        self.limit = limit;
        self
    }
}

impl<'a> IntoFuture for Rank<'a> {
    type Output = Result<Ranking, ClientError>;
    type IntoFuture = Boxed<'a, Ranking>;
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Self { client, board, part, limit } = self;
            let request = client_session::Rank { board, part, limit };
            let Done::Ranking(ranking) = client.request(request.into()).await? else {
                return Err(mismatch());
            };
            Ok(ranking)
        })
    }
}
