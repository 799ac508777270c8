//! The independent oracle, random clusters, and the suites that run on every back end.
