//! What a plan may do to the kernel's maps, and how it is applied.
