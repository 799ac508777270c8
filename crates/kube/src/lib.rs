//! Kubernetes objects to the model, with source positions.
