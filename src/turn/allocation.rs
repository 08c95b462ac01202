//! placeholder
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllocationId {
    pub slot: u32,
    pub generation: u32,
}
