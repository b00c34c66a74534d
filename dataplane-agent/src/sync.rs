//! The loop that turns changes into map operations.
