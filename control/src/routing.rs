//! Makes one snapshot of what is wanted (registry) and what is there (health), and keeps it current.

mod compile;
pub use compile::{Compiler, Inputs};

mod seal;

mod ways;

mod explain;
pub use explain::explain;

mod judge;
pub use judge::judge;

mod rollout;
pub use rollout::{Mover, canaries};

mod steer;
pub use steer::{Steering, Told};

mod publish;
pub use publish::{Published, Publisher, Share};
