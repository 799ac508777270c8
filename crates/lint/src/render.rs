//! Findings as text for people, and in the formats of other programs.

mod github;
mod junit;
mod sarif;
mod text;
mod xml;

pub use github::github;
pub use junit::junit;
pub use sarif::sarif;
pub use text::text;
pub use xml::xml_escaped;
