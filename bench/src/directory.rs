//! The directory: what the master's core alone takes, in memory and time, without sockets and without a log.
//!
//! Each part runs in a process of its own, so that the memory of one is not what another left behind.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use greenroom_master_core::{Event, Record, State};
use greenroom_protocol::search::Filter;
use greenroom_protocol::wire::client_session::{Rank, RankPart, Watch};
use greenroom_protocol::wire::master_game::Scored;
use greenroom_protocol::wire::session_master::{Granted, Outcome};
use greenroom_protocol::{KindName, Limits, UserId};
use hdrhistogram::Histogram;

use crate::core::{
    About, CHECK_EVERY, Core, LOBBY, Lobby, Player, SEARCHES, SEATS, Spent, below, rating, search,
};
use crate::machine;
use crate::measure::float;
use crate::report::{Figures, progress};
use crate::wire::Random;

/// Sessions that ask, where the number of users is not what is measured.
const PLAYERS: usize = 1_000;
/// Instances that are alive where verbs are measured.
const LIVE: usize = 10_000;
/// Updates a second beside searches.
const UPDATES_PER_S: u32 = 5_000;
/// Searches of each form that are explained afterwards.
const EXPLAINED: usize = 500;
/// The board on which users are ranked.
const BOARD: &str = "season 1";
/// Instances in the set of the live search: fewer than a live search may follow.
const WATCHED: usize = 500;
/// Watchers of one filter.
const WATCHERS: [usize; 3] = [0, 1, 1_000];
/// Ratings that are watched are below.
const WATCHED_BELOW: u16 = 50;

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Study {
    /// Memory of users: records, sessions, seats.
    Users,
    /// Memory of instances, then searches among them beside updates.
    Instances,
    /// Time of the verbs, mixed.
    Apply,
    /// Rank queries.
    Ranks,
    /// What updates cost beside live searches.
    Watch,
    /// What a standby costs: hashes of the state, a snapshot of it, and a state made from that.
    Standby,
}

impl Study {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Users => "users",
            Self::Instances => "instances",
            Self::Apply => "apply",
            Self::Ranks => "ranks",
            Self::Watch => "watch",
            Self::Standby => "standby",
        }
    }

    /// Its figures that stand in the summary.
    pub(crate) const fn headlines(self) -> &'static [&'static str] {
        match self {
            Self::Users => {
                &["bytes_per_user", "bytes_per_user_checked_in", "counted_bytes_per_user_record"]
            }
            Self::Instances => &["bytes_per_instance", "search_p50_us", "search_p99_us"],
            Self::Apply => &["commands_per_s"],
            Self::Ranks => &["rank_p99_us"],
            Self::Watch => &[
                "other_update_unwatched_ns",
                "other_update_1_watcher_ns",
                "other_update_1000_watchers_ns",
            ],
            Self::Standby => &["hash_us", "freeze_us", "slice_most_us", "restore_ms"],
        }
    }

    /// What it counts.
    pub(crate) const fn counts(self) -> &'static str {
        match self {
            Self::Users | Self::Ranks | Self::Standby => "users",
            Self::Instances | Self::Apply | Self::Watch => "instances",
        }
    }

    /// How many there are of what it counts, when `records` are wanted at most.
    pub(crate) fn sizes(self, records: usize) -> Vec<usize> {
        match self {
            Self::Users | Self::Ranks | Self::Standby => vec![records],
            Self::Instances if records > 100_000 => vec![100_000, records],
            Self::Instances => vec![records],
            Self::Apply | Self::Watch => vec![records.min(LIVE)],
        }
    }
}

/// Runs a study in this process, for windows of `seconds` where it has windows.
///
/// # Errors
/// When the core refuses something: then the figures would be of refusals.
pub(crate) fn run(study: Study, size: usize, seconds: f64) -> anyhow::Result<Figures> {
    ensure!(size > 0, "nothing to measure");
    let window = Duration::try_from_secs_f64(seconds).context("--seconds")?;
    match study {
        Study::Users => users(size),
        Study::Instances => instances(size, window),
        Study::Apply => apply(size, window),
        Study::Ranks => ranks(size, window),
        Study::Watch => watch(size, window),
        Study::Standby => standby(size),
    }
}

/// Times in nanoseconds, to three digits.
struct Times(Histogram<u64>);

impl Times {
    fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3);
        Self(histogram.expect("the bounds are in order and three digits are allowed"))
    }
    fn add(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }
    fn len(&self) -> u64 {
        self.0.len()
    }
    /// Microseconds below which `share` of them lie.
    fn micros(&self, share: f64) -> f64 {
        float(self.0.value_at_quantile(share)) / 1e3
    }
    fn most(&self) -> f64 {
        float(self.0.max()) / 1e3
    }
}

fn resident() -> anyhow::Result<u64> {
    machine::rss(std::process::id())
}

fn each(now: u64, before: u64, count: usize) -> f64 {
    float(now.saturating_sub(before)) / float(count as u64)
}

fn share(bytes: usize, count: usize) -> f64 {
    float(bytes as u64) / float(count as u64)
}

fn nanos(spent: Spent) -> f64 {
    spent.time.as_secs_f64() * 1e9 / float(spent.count.max(1))
}

fn players(core: &mut Core, count: usize) -> anyhow::Result<Vec<Player>> {
    (0..count).map(|n| core.bind(n)).collect()
}

/// Users that check in, and then take a seat each.
fn users(size: usize) -> anyhow::Result<Figures> {
    let mut core = Core::new()?;
    let mut players = vec![Player::NOBODY; size];
    let before = resident()?;
    for (n, player) in players.iter_mut().enumerate() {
        *player = core.bind(n)?;
    }
    core.acknowledge()?;
    let (checked_in, counted) = (resident()?, core.state.memory());
    ensure!(core.state.users() == size as u64, "not everybody is checked in");
    let bind = nanos(core.spent["bind"]);
    progress(&format!("  {size} users are checked in"));
    for player in &mut players {
        core.sit_anywhere(player)?;
    }
    core.acknowledge()?;
    let (seated, after) = (resident()?, core.state.memory());
    let instances = core.state.instances();
    ensure!(instances == size.div_ceil(usize::from(SEATS)) as u64, "{instances} instances");
    Ok(vec![
        ("bytes_per_user", each(seated, before, size)),
        ("bytes_per_user_checked_in", each(checked_in, before, size)),
        ("bytes_per_seat_with_its_share_of_the_instance", each(seated, checked_in, size)),
        ("counted_bytes_per_user_record", share(counted.users, size)),
        ("counted_bytes_per_session", share(counted.sessions, size)),
        ("counted_bytes_per_session_with_an_answer", share(after.sessions, size)),
        ("counted_bytes_of_the_instance_per_user", share(after.instances, size)),
        ("bind_ns", bind),
        ("resident_mib", float(seated) / 1_048_576.0),
    ])
}

/// What changes in the directory while somebody searches: ratings, and seats taken and left.
struct Updates {
    random: Random,
    /// Who has a seat, and where.
    seated: VecDeque<(usize, Granted)>,
    step: u8,
}

impl Updates {
    fn new() -> Self {
        Self { random: Random::new(5), seated: VecDeque::new(), step: 0 }
    }

    /// The next one or two commands. Gives how many it was.
    fn next(
        &mut self,
        core: &mut Core,
        players: &mut [Player],
        lobbies: &mut [(Lobby, About)],
    ) -> anyhow::Result<u32> {
        self.step = (self.step + 1) % 6;
        match self.step {
            // A player takes a seat …
            1 if self.seated.len() < players.len() => {
                let n = match self.seated.back() {
                    Some((last, _)) => (last + 1) % players.len(),
                    None => 0,
                };
                let (lobby, _) = lobbies[below(&mut self.random, lobbies.len())];
                let seat = core.sit(&mut players[n], lobby)?;
                self.seated.push_back((n, seat));
                Ok(2)
            }
            // … and who sat longest leaves, when half of them sit.
            4 if self.seated.len() > players.len() / 2 => {
                let Some((n, seat)) = self.seated.pop_front() else { return Ok(0) };
                core.leave(&mut players[n], &seat)?;
                Ok(2)
            }
            _ => {
                let (lobby, about) = &mut lobbies[below(&mut self.random, lobbies.len())];
                about.rating = rating(&mut self.random);
                core.say(*lobby, about.meta())?;
                Ok(1)
            }
        }
    }
}

/// Makes lobbies. What the benchmark itself keeps of them is `lobbies`, with room for all from the beginning.
fn fill(
    core: &mut Core,
    players: &mut [Player],
    lobbies: &mut Vec<(Lobby, u32)>,
    size: usize,
) -> anyhow::Result<()> {
    for n in 0..size {
        // Ten a millisecond, so that they differ in when they were made.
        core.now_ms += u64::from(n % 10 == 0);
        let seed = u32::try_from(n).unwrap_or(u32::MAX);
        let player = n % players.len();
        let lobby = core.create(&mut players[player], || about(seed).meta())?;
        lobbies.push((lobby, seed));
    }
    core.acknowledge()
}

/// What a lobby said of itself when it was made.
fn about(seed: u32) -> About {
    About::draw(&mut Random::new(u64::from(seed) + 1_000))
}

/// Memory of instances, then searches one after the other while updates come in by the clock.
fn instances(size: usize, window: Duration) -> anyhow::Result<Figures> {
    let mut core = Core::new()?;
    let mut players = players(&mut core, PLAYERS)?;
    // Written to, so that its pages are there.
    let mut made = vec![(Lobby::NONE, u32::MAX); size];
    made.clear();
    let before = resident()?;
    fill(&mut core, &mut players, &mut made, size)?;
    let after = resident()?;
    ensure!(core.state.instances() == size as u64, "not every instance is there");
    progress(&format!("  {size} instances run"));
    let mut figures = vec![
        ("bytes_per_instance", each(after, before, size)),
        ("counted_bytes_per_instance", share(core.state.memory().instances, size)),
        ("create_ns", nanos(core.spent["create"])),
        ("running_ns", nanos(core.spent["running"])),
    ];
    let mut lobbies: Vec<(Lobby, About)> =
        made.into_iter().map(|(lobby, seed)| (lobby, about(seed))).collect();
    figures.extend(searches(&mut core, &mut players, &mut lobbies, window)?);
    Ok(figures)
}

/// Names of the figures of each form of search.
const FORMS: [[&str; 3]; SEARCHES.len()] = [
    ["mode_rating_p50_us", "mode_rating_p99_us", "mode_rating_examined"],
    ["rating_p50_us", "rating_p99_us", "rating_examined"],
    ["name_p50_us", "name_p99_us", "name_examined"],
    ["newest_p50_us", "newest_p99_us", "newest_examined"],
];

fn searches(
    core: &mut Core,
    players: &mut [Player],
    lobbies: &mut [(Lobby, About)],
    window: Duration,
) -> anyhow::Result<Figures> {
    let mut random = Random::new(3);
    let (mut all, mut waited) = (Times::new(), Times::new());
    let mut forms = SEARCHES.map(|_| Times::new());
    let (mut updates, mut found, mut commands) = (Updates::new(), 0, 0);
    core.reset();
    let began_ms = core.now_ms;
    let started = Instant::now();
    let mut asked = started;
    while asked.duration_since(started) < window {
        let elapsed = asked.duration_since(started);
        core.pass(began_ms + u64::try_from(elapsed.as_millis()).unwrap_or(0))?;
        let due = elapsed.as_secs_f64() * f64::from(UPDATES_PER_S);
        while f64::from(commands) < due {
            commands += updates.next(core, players, lobbies)?;
        }
        let form = below(&mut random, SEARCHES.len());
        let search = search(form, &mut random)?;
        let (answer, took) = core.search(&search)?;
        all.add(took);
        forms[form].add(took);
        // Whoever asked when the last answer went out waited for the updates too.
        let now = Instant::now();
        waited.add(now.duration_since(asked));
        asked = now;
        found += answer.instances.len();
    }
    let seconds = started.elapsed().as_secs_f64();
    ensure!(all.len() > 0 && found > 0, "nothing was found");
    let mut figures = vec![
        ("search_p50_us", all.micros(0.5)),
        ("search_p99_us", all.micros(0.99)),
        ("search_max_us", all.most()),
        ("search_behind_updates_p99_us", waited.micros(0.99)),
        ("searches_per_s", float(all.len()) / seconds),
        ("updates_per_s", f64::from(commands) / seconds),
        ("found_per_search", float(found as u64) / float(all.len())),
    ];
    for (form, [p50, p99, examined]) in FORMS.iter().enumerate() {
        let mut looked_at = 0;
        for _ in 0..EXPLAINED {
            let mut search = search(form, &mut random)?;
            search.explain = true;
            let (answer, _) = core.search(&search)?;
            looked_at += u64::from(answer.explain.context("an explanation was asked")?.examined);
        }
        let times = &forms[form];
        figures.extend([
            (*p50, times.micros(0.5)),
            (*p99, times.micros(0.99)),
            (*examined, float(looked_at) / float(EXPLAINED as u64)),
        ]);
    }
    Ok(figures)
}

/// All verbs in turn over instances that are there: one is made, one is closed, somebody takes a seat in one, somebody
/// leaves one, one says something new of itself, and somebody looks for one.
fn apply(size: usize, window: Duration) -> anyhow::Result<Figures> {
    let mut core = Core::new()?;
    let mut players = players(&mut core, PLAYERS)?;
    let mut made = Vec::with_capacity(size);
    fill(&mut core, &mut players, &mut made, size)?;
    let mut lobbies: VecDeque<Lobby> = made.into_iter().map(|(lobby, _)| lobby).collect();
    let mut random = Random::new(9);
    let mut seated: VecDeque<(usize, Granted)> = VecDeque::new();
    let mut searching = Spent::default();
    core.reset();
    let began_ms = core.now_ms;
    let started = Instant::now();
    let mut n = 0;
    while started.elapsed() < window {
        n += 1;
        core.now_ms = began_ms + u64::try_from(started.elapsed().as_millis()).unwrap_or(0);
        let maker = below(&mut random, players.len());
        let lobby = core.create(&mut players[maker], || About::draw(&mut random).meta())?;
        lobbies.push_back(lobby);
        let oldest = lobbies.pop_front().context("as many as there were")?;
        // Whoever still sits there loses the seat by it.
        seated.retain(|(_, seat)| seat.instance != oldest.instance);
        core.close(oldest)?;
        let sitter = n % players.len();
        let lobby = lobbies[below(&mut random, lobbies.len())];
        let seat = core.sit(&mut players[sitter], lobby)?;
        seated.push_back((sitter, seat));
        if seated.len() > players.len() / 2
            && let Some((leaver, seat)) = seated.pop_front()
        {
            core.leave(&mut players[leaver], &seat)?;
        }
        let lobby = lobbies[below(&mut random, lobbies.len())];
        core.say(lobby, About::draw(&mut random).meta())?;
        let (_, took) = core.search(&search(n, &mut random)?)?;
        searching.add(took);
    }
    let commands: Spent = core.spent.values().fold(Spent::default(), |sum, spent| Spent {
        count: sum.count + spent.count,
        time: sum.time + spent.time,
    });
    let all = float(commands.count + searching.count);
    let mut figures = vec![
        ("commands_per_s", all / (commands.time + searching.time).as_secs_f64()),
        ("commands_without_searches_per_s", float(commands.count) / commands.time.as_secs_f64()),
        ("searches_share", float(searching.count) / all),
        ("search_ns", nanos(searching)),
    ];
    let named = |name: &str| match name {
        "create" => "create_ns",
        "running" => "running_ns",
        "join" => "join_ns",
        "taken" => "taken_ns",
        "leave" => "leave_ns",
        "free" => "free_ns",
        "meta" => "meta_ns",
        "closed" => "closed_ns",
        _ => "received_ns",
    };
    figures.extend(core.spent.iter().map(|(name, spent)| (named(name), nanos(*spent))));
    Ok(figures)
}

/// Pieces of a slice, as the masters' default is.
const SLICE: usize = 256;
/// Commands between two slices of a snapshot.
const COMMANDS_BETWEEN: u32 = 16;

/// Users in seats, and a tenth as many instances: what the hash takes after each 1,024 commands, what a snapshot takes
/// that is read between commands, and how long it takes to make a state of it.
fn standby(size: usize) -> anyhow::Result<Figures> {
    let mut core = Core::new()?;
    let mut players = players(&mut core, size)?;
    for player in &mut players {
        core.sit_anywhere(player)?;
    }
    let mut made = Vec::new();
    let more = (size / 10).saturating_sub(size.div_ceil(usize::from(SEATS)));
    fill(&mut core, &mut players, &mut made, more)?;
    let mut lobbies: Vec<(Lobby, About)> =
        made.into_iter().map(|(lobby, seed)| (lobby, about(seed))).collect();
    progress(&format!("  {size} users sit in {} instances", core.state.instances()));
    let mut updates = Updates::new();
    let mut some = |core: &mut Core, players: &mut [Player], count: u32| {
        let mut commands = 0;
        while commands < count {
            commands += updates.next(core, players, &mut lobbies)?;
        }
        anyhow::Ok(())
    };
    let timed = |began: Instant| began.elapsed();

    let mut hashes = Times::new();
    for _ in 0..20 {
        core.state.check();
        some(&mut core, &mut players, u32::try_from(CHECK_EVERY)? - 1)?;
        let began = Instant::now();
        core.state.check();
        hashes.add(timed(began));
    }
    let hash = core.state.state_hash();
    let began = Instant::now();
    ensure!(core.state.state_hash_in_full() == hash, "the hash that is kept up is another one");
    let in_full = timed(began);

    let began = Instant::now();
    let frozen = core.state.freeze();
    let freeze = timed(began);
    let (mut slices, mut all, mut records) = (Times::new(), Duration::ZERO, Vec::new());
    let lsn = core.state.lsn();
    loop {
        let began = Instant::now();
        let slice = core.state.next_records(&frozen, SLICE);
        let took = timed(began);
        slices.add(took);
        all += took;
        if slice.is_empty() {
            break;
        }
        records.extend(slice);
        some(&mut core, &mut players, COMMANDS_BETWEEN)?;
    }
    let commands = core.state.lsn() - lsn;
    let pieces = records.len() as u64;
    progress(&format!("  {pieces} pieces are read beside {commands} commands"));

    let mut bytes: Vec<Vec<u8>> = Vec::with_capacity(records.len());
    let began = Instant::now();
    bytes.extend(records.iter().map(greenroom_protocol::encode));
    let encode = timed(began);
    drop(records);
    let sum: u64 = bytes.iter().map(|piece| piece.len() as u64).sum();
    let began = Instant::now();
    let records: Result<Vec<Record>, _> =
        bytes.iter().map(|piece| greenroom_protocol::decode(piece, Limits::SERVER)).collect();
    let records = records?;
    let decode = timed(began);
    drop(bytes);
    let began = Instant::now();
    let (settings, placement) = (core.state.settings(), core.state.placement());
    let restored = State::restore(&crate::core::secret(), settings, placement, records)?;
    let restore = timed(began);
    ensure!(restored.state_hash() == hash, "a snapshot gives another state");
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    Ok(vec![
        ("hash_us", hashes.micros(0.5)),
        ("hash_most_us", hashes.most()),
        ("hash_in_full_ms", millis(in_full)),
        ("freeze_us", freeze.as_secs_f64() * 1e6),
        ("slice_p50_us", slices.micros(0.5)),
        ("slice_most_us", slices.most()),
        ("slices", float(slices.len())),
        ("slices_ms", millis(all)),
        ("pieces", float(pieces)),
        ("snapshot_mib", float(sum) / 1_048_576.0),
        ("encode_ms", millis(encode)),
        ("decode_ms", millis(decode)),
        ("restore_ms", millis(restore)),
    ])
}

/// A board with everybody on it; where somebody is, and who is around.
fn ranks(size: usize, window: Duration) -> anyhow::Result<Figures> {
    let mut core = Core::new()?;
    let mut player = core.bind(0)?;
    let lobby = core.create(&mut player, || about(0).meta())?;
    let mut random = Random::new(7);
    let score = |core: &mut Core, n: usize, random: &mut Random| {
        let scored = Scored {
            instance: lobby.instance,
            incarnation: lobby.incarnation,
            board: BOARD.into(),
            user: UserId::new(format!("guest-{n:08}"))?,
            name: format!("player {n:06}").into(),
            score: Some(i64::try_from(random.next() % 1_000_000)?),
        };
        core.happened("scored", Event::Scored(scored))
    };
    let before = resident()?;
    for n in 0..size {
        score(&mut core, n, &mut random)?;
    }
    core.acknowledge()?;
    let after = resident()?;
    let filled = nanos(core.spent["scored"]);
    core.reset();
    let rank = |part, limit| Rank { board: BOARD.into(), part, limit };
    let (mut of_user, mut around, mut from) = (Times::new(), Times::new(), Times::new());
    let started = Instant::now();
    while started.elapsed() < window {
        // Scores go on changing beside.
        score(&mut core, below(&mut random, size), &mut random)?;
        let whom = UserId::new(format!("guest-{:08}", below(&mut random, size)))?;
        let place = 1 + random.next() % (size as u64);
        let questions = [
            (rank(RankPart::Around(Some(whom.clone())), 1), &mut of_user),
            (rank(RankPart::Around(Some(whom)), 11), &mut around),
            (rank(RankPart::From(place), 10), &mut from),
        ];
        for (question, times) in questions {
            let began = Instant::now();
            let outcome = core.state.rank(&question, player.session);
            times.add(began.elapsed());
            let Outcome::Ranking(ranking) = outcome else {
                anyhow::bail!("{question:?} is answered by {outcome:?}")
            };
            ensure!(ranking.members == size as u64 && !ranking.ranks.is_empty(), "{ranking:?}");
        }
    }
    Ok(vec![
        ("rank_p99_us", of_user.micros(0.99)),
        ("rank_p50_us", of_user.micros(0.5)),
        ("around_10_p50_us", around.micros(0.5)),
        ("around_10_p99_us", around.micros(0.99)),
        ("from_rank_10_p50_us", from.micros(0.5)),
        ("from_rank_10_p99_us", from.micros(0.99)),
        ("score_filling_ns", filled),
        ("score_ns", nanos(core.spent["scored"])),
        ("bytes_per_ranked_user", each(after, before, size)),
    ])
}

/// Names of the figures with each of [`WATCHERS`].
const WATCH_FIGURES: [[&str; 4]; WATCHERS.len()] = [
    ["other_update_unwatched_ns", "update_unwatched_ns", "", ""],
    [
        "other_update_1_watcher_ns",
        "update_1_watcher_ns",
        "update_with_telling_1_watcher_ns",
        "updates_heard_1_watcher",
    ],
    [
        "other_update_1000_watchers_ns",
        "update_1000_watchers_ns",
        "update_with_telling_1000_watchers_ns",
        "updates_heard_1000_watchers",
    ],
];

/// What an update costs that a filter lets through, and one that it does not, by how many watch. The filter has no
/// equality by which it could be passed over: each update is looked at.
fn watch(size: usize, window: Duration) -> anyhow::Result<Figures> {
    let mut figures = Vec::new();
    for (watchers, [other, update, telling, heard]) in WATCHERS.into_iter().zip(WATCH_FIGURES) {
        let mut core = Core::new()?;
        let mut players = players(&mut core, PLAYERS)?;
        let watched = WATCHED.min(size.div_ceil(2));
        let mut random = Random::new(13);
        let mut lobbies = Vec::with_capacity(size);
        for n in 0..size {
            let mut about = About::draw(&mut random);
            about.rating = rated(&mut random, n < watched);
            let lobby = core.create(&mut players[n % PLAYERS], || about.meta())?;
            lobbies.push((lobby, about));
        }
        core.acknowledge()?;
        let filter = Filter::parse(&format!("rating < {WATCHED_BELOW}")).context("the filter")?;
        for player in &mut players[..watchers] {
            let filter = filter.clone();
            core.watch(player, Watch { kind: KindName::new(LOBBY)?, filter })?;
        }
        hear_all(&mut core)?;
        // Each half of the window has updates of one sort only.
        let is_first = |started: Instant| started.elapsed() < window / 2;
        for is_watched in [false, true] {
            core.reset();
            let (mut clients, mut updates) = (0, 0);
            let started = Instant::now();
            while updates == 0 || is_first(started) {
                // A millisecond of 5,000 updates a second.
                for _ in 0..UPDATES_PER_S / 1_000 {
                    let among = if is_watched { 0..watched } else { watched..size };
                    let n = among.start + below(&mut random, among.len());
                    let (lobby, about) = &mut lobbies[n];
                    about.rating = rated(&mut random, is_watched);
                    core.say(*lobby, about.meta())?;
                    updates += 1;
                }
                core.pass(core.now_ms + 1)?;
                clients += core.see()?.0;
            }
            let spent = core.spent["meta"];
            if !is_watched {
                ensure!(
                    clients == 0,
                    "{clients} were told of what the filter does not let through"
                );
                figures.push((other, nanos(spent)));
                continue;
            }
            figures.push((update, nanos(spent)));
            if watchers > 0 {
                let of = |verb| core.spent.get(verb).copied().unwrap_or_default().time;
                let time = spent.time + of("expire") + of("seen") + of("received");
                figures.push((telling, nanos(Spent { time, ..spent })));
                figures.push((heard, float(clients) / float(updates)));
            }
        }
    }
    Ok(figures)
}

/// A rating that the filter lets through, or one that it does not.
fn rated(random: &mut Random, is_watched: bool) -> u16 {
    match is_watched {
        true => rating(random) % WATCHED_BELOW,
        false => rating(random).max(WATCHED_BELOW),
    }
}

/// Time passes until nobody has anything to hear any more.
fn hear_all(core: &mut Core) -> anyhow::Result<()> {
    for _ in 0..100 {
        core.pass(core.now_ms + 100)?;
        core.see()?;
    }
    let (clients, _) = core.see()?;
    ensure!(clients == 0, "after ten seconds there is still something to tell");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small runs of what is measured: every command is taken, every search finds something, and each figure is there.
    #[test]
    fn every_study_runs_and_gives_its_figures() {
        let expected = [
            (Study::Users, "bytes_per_user"),
            (Study::Instances, "search_p99_us"),
            (Study::Apply, "commands_per_s"),
            (Study::Ranks, "rank_p99_us"),
            (Study::Watch, "update_with_telling_1000_watchers_ns"),
        ];
        for (study, name) in expected {
            let figures = run(study, 200, 0.05).unwrap();
            let figure = figures.iter().find(|(found, _)| *found == name);
            assert!(figure.is_some_and(|(_, value)| value.is_finite()), "{study:?}: {figures:?}");
        }
    }

    #[test]
    fn searches_of_every_form_find_lobbies() {
        let mut core = Core::new().unwrap();
        let mut players = players(&mut core, 10).unwrap();
        let mut made = Vec::new();
        fill(&mut core, &mut players, &mut made, 2_000).unwrap();
        let mut random = Random::new(1);
        for (form, name) in SEARCHES.iter().enumerate() {
            let mut found = 0;
            for _ in 0..200 {
                let (answer, _) = core.search(&search(form, &mut random).unwrap()).unwrap();
                found += answer.instances.len();
            }
            assert!(found > 0, "{name} finds nothing");
        }
    }
}
