//! The few colours. `anstream` leaves them out where they do not belong: no terminal, `NO_COLOR`.

use anstyle::{AnsiColor, Style};

/// Names that the eye looks for.
pub(crate) const BOLD: Style = Style::new().bold();
/// What is there for those who look closer.
pub(crate) const DIM: Style = Style::new().dimmed();
/// Something is wrong.
pub(crate) const ERROR: Style = AnsiColor::Red.on_default().bold();
/// Something may be wrong.
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default().bold();
/// A connection that passes.
pub(crate) const ALLOWED: Style = AnsiColor::Green.on_default();
/// A connection that does not.
pub(crate) const REFUSED: Style = AnsiColor::Red.on_default();
/// A connection of which nobody knows.
pub(crate) const DOUBT: Style = AnsiColor::Yellow.on_default();
