//! Which address families a lab has.

use portcullis_core::net::Family;

/// Address families of a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// Dual stack.
    Both,
}

impl Families {
    /// Whether this family is one of them.
    pub fn contains(self, family: Family) -> bool {
        match self {
            Families::V4 => family == Family::V4,
            Families::V6 => family == Family::V6,
            Families::Both => true,
        }
    }

    /// The families, IPv4 first.
    pub(crate) fn iter(self) -> impl Iterator<Item = Family> {
        Family::ALL.into_iter().filter(move |family| self.contains(*family))
    }
}
