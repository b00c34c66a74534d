//! Desired map contents, computed from the model.
