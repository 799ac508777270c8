//! Findings as text for people, and in the formats of other programs.

mod text;

pub use text::text;
