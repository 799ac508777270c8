//! A cluster of network namespaces: real packets without root.
