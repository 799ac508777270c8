//! Findings as text for people, and in the formats of other programs.

mod github;
mod text;

pub use github::github;
pub use text::text;
