//! The demo games: arena, which a game developer reads first, duel, which goes turn by turn, and the small kinds that
//! tests and benchmarks use.
//!
//! - *Takes* what players send.
//! - *Gives* what they see, and what happens to them.
//! - *Owns* the rules.
//! - *Never* more than a game of your own could do: this crate knows Greenroom by its public door only.

pub mod arena;
pub mod crowd;
pub mod duel;
pub mod echo;
pub mod lobby;
mod pages;
pub mod vault;
pub mod visit;

pub use arena::Arena;
pub use crowd::Crowd;
pub use duel::Duel;
pub use echo::Echo;
pub use lobby::Lobby;
pub use pages::PAGES;
pub use vault::Vault;
pub use visit::Visit;
