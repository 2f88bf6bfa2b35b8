//! What the benchmark of rooms runs: players move by small steps, and everybody sees all of them 20 times a second.

use greenroom::{Cx, Instance, Kind, Never, Reject, Seat, Why};
use serde::{Deserialize, Serialize};

/// Seats of a crowd.
pub const SEATS: u16 = 16;

/// Everybody's place and health, by seat, and when that was.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Crowd {
    /// Wall clock of the last tick, in milliseconds since 1970: readers subtract it from theirs.
    pub t: f64,
    /// By seat; nothing for a free one.
    pub players: [Option<Player>; SEATS as usize],
}

/// A player: a tuple, so that its field names are not sent 16 times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Player(
    /// x
    pub f32,
    /// y
    pub f32,
    /// Health, 0 to 100.
    pub u8,
    /// Steps, modulo 10; not sent.
    #[serde(skip)]
    u8,
);

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// To the right.
    pub dx: f32,
    /// Down.
    pub dy: f32,
}

impl Instance for Crowd {
    const KIND: Kind<Self> = Kind::new("crowd").needs(&["bench"]).tick_rate(20).seats_max(SEATS);
    type Params = ();
    type Meta = ();
    type In = Step;
    type Query = Never;
    type Reply = Never;
    type Out = Never;
    type Timer = Never;
    type View<'a> = &'a Self;
    type PrivateView<'a> = ();

    fn create((): (), _: &mut Cx<Self>) -> Result<Self, Reject> {
        Ok(Self::default())
    }
    fn joined(&mut self, seat: Seat, _: &mut Cx<Self>) {
        self.players[usize::from(seat.0)] = Some(Player(0.0, 0.0, 100, 0));
    }
    fn left(&mut self, seat: Seat, _: Why, _: &mut Cx<Self>) {
        self.players[usize::from(seat.0)] = None;
    }
    fn message(&mut self, from: Seat, step: Step, _: &mut Cx<Self>) {
        let Some(Player(x, y, hp, steps)) = &mut self.players[usize::from(from.0)] else { return };
        *x += step.dx;
        *y += step.dy;
        *steps += 1;
        if *steps == 10 {
            *steps = 0;
            *hp = hp.checked_sub(1).unwrap_or(100);
        }
    }
    fn tick(&mut self, cx: &mut Cx<Self>) {
        self.t = cx.wall().as_secs_f64() * 1_000.0;
    }
    fn view(&self) -> &Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use greenroom::testing::{Stage, replay};

    #[test]
    fn everybody_sees_every_step_and_the_time_of_the_tick() {
        let mut stage = Stage::<Crowd>::new();
        for seat in 0..SEATS {
            stage.join(seat).unwrap();
        }
        for _ in 0..10 {
            stage.send(3, &Step { dx: 0.25, dy: -0.5 });
        }
        stage.ticks(1);
        let seen: Crowd = stage.view(7);
        assert_eq!(seen.players[3], Some(Player(2.5, -5.0, 99, 0)));
        assert!((seen.t - 1_800_000_000_050.0).abs() < 1e-3, "{}", seen.t);
        stage.ticks(5);
        replay::<Crowd>(stage.recording(), 0).unwrap();
    }

    /// The budget of the benchmark is 3,500 bytes per client and second, of which the frames' headers are 460.
    #[test]
    fn a_patch_of_a_busy_crowd_is_small() {
        let mut stage = Stage::<Crowd>::new();
        for seat in 0..SEATS {
            stage.join(seat).unwrap();
        }
        let (mut bytes, ticks) = (0, 200u16);
        for tick in 0..ticks {
            for seat in (0..SEATS).filter(|seat| (seat + tick) % 2 == 0) {
                let quarters = |salt: u16| f32::from((tick * 31 + seat * 17 + salt) % 33) / 4.0;
                stage.send(seat, &Step { dx: quarters(1) - 4.0, dy: quarters(9) - 4.0 });
            }
            stage.ticks(1);
            bytes += stage.effects().bytes.len();
        }
        let per_second = bytes / usize::from(ticks) * 20;
        assert!(per_second < 3_000, "{per_second} bytes per second");
    }
}
