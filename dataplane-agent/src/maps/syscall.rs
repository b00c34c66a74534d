//! The uses of `bpf(2)` that aya lacks: opening a pin read-only, and reading, writing and deleting many elements at once.

use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya::{Pod, maps::MapData};
use aya_obj::generated::{BPF_F_RDONLY, bpf_attr, bpf_cmd};

/// Elements per call of [`read_array`]; large enough that the cost of the call itself vanishes.
const BATCH: u32 = 4096;

/// Opens the object pinned at `path`.
pub(super) fn open_pin(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = empty_attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.file_flags = if read_only { BPF_F_RDONLY } else { 0 };
    let fd = bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// All elements of the array `map`, index by index.
///
/// One call reads thousands of elements: a million slots take a few hundred calls instead of a million. Arrays have
/// answered `BPF_MAP_LOOKUP_BATCH` since 5.6 (commit c60f2d286184).
pub(super) fn read_array<V: Pod>(map: &MapData, entries: u32) -> io::Result<Vec<V>> {
    use std::os::fd::AsFd as _;
    let map_fd = map.fd().as_fd().as_raw_fd();
    let mut values: Vec<V> = Vec::with_capacity(entries as usize);
    let mut keys = vec![0_u32; BATCH as usize];
    let mut position = 0_u32;
    while (values.len() as u64) < u64::from(entries) {
        let done = values.len();
        let mut next = 0_u32;
        let mut attr = empty_attr();
        attr.batch.in_batch = if done == 0 { 0 } else { (&raw const position) as u64 };
        attr.batch.out_batch = (&raw mut next) as u64;
        attr.batch.keys = keys.as_mut_ptr() as u64;
        attr.batch.values = values.spare_capacity_mut().as_mut_ptr() as u64;
        attr.batch.count = BATCH.min(entries - done as u32);
        attr.batch.map_fd = map_fd as u32;
        let result = bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr);
        // SAFETY: `batch` is the member this call was made with; it holds integers only.
        let count = unsafe { attr.batch.count };
        // SAFETY: the kernel wrote `count` values behind the first `done`, no more than were asked for, and any bytes
        // are a valid `V`. The layout check of `pinned::open` made sure that its values are as large as `V`.
        unsafe { values.set_len(done + count as usize) };
        match result {
            Ok(_) if count > 0 => position = next,
            Ok(_) => break,
            // The end of the map.
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
    }
    Ok(values)
}

/// About `count` entries of the hash map `map`, from `position` on, which moves behind them and becomes `None` at the end.
///
/// The kernel reads bucket by bucket, so an entry that stays in the map is seen exactly once in a pass, whatever comes and
/// goes meanwhile. Hash maps have answered `BPF_MAP_LOOKUP_BATCH` since 5.6 (commit 057996380a42), and it does not count
/// as a use of an LRU map's entry.
pub(super) fn read_hash<K: Pod, V: Pod>(
    map: &MapData,
    position: &mut Option<u32>,
    count: u32,
) -> io::Result<Vec<(K, V)>> {
    use std::os::fd::AsFd as _;
    let mut room = count.max(1);
    loop {
        let mut keys = Vec::<K>::with_capacity(room as usize);
        let mut values = Vec::<V>::with_capacity(room as usize);
        let from = position.unwrap_or_default();
        let mut next = 0_u32;
        let mut attr = empty_attr();
        attr.batch.in_batch = if position.is_none() { 0 } else { (&raw const from) as u64 };
        attr.batch.out_batch = (&raw mut next) as u64;
        attr.batch.keys = keys.as_mut_ptr() as u64;
        attr.batch.values = values.as_mut_ptr() as u64;
        attr.batch.count = room;
        attr.batch.map_fd = map.fd().as_fd().as_raw_fd() as u32;
        let is_last = match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // A single bucket holds more than there was room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 20 => {
                room *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        // SAFETY: `batch` is the member this call was made with; it holds integers only.
        let read = unsafe { attr.batch.count }.min(room) as usize;
        // SAFETY: the kernel wrote `read` keys and values, no more than there was room for, and any bytes are a valid `K`
        // and `V`. The layout check of `pinned::open` made sure that they are as large as the map's.
        unsafe {
            keys.set_len(read);
            values.set_len(read);
        }
        *position = (!is_last).then_some(next);
        return Ok(keys.into_iter().zip(values).collect());
    }
}

/// Writes `values` under `keys`; at an error, also how many were written before the one that it is about.
///
/// Hash maps and arrays have answered `BPF_MAP_UPDATE_BATCH` since 5.6 (commit aa2e93b8e58e).
pub(super) fn write_all<K: Pod, V: Pod>(map: &MapData, keys: &[K], values: &[V]) -> Result<(), (usize, io::Error)> {
    let count = keys.len().min(values.len());
    batch(bpf_cmd::BPF_MAP_UPDATE_BATCH, map, keys.as_ptr() as u64, values.as_ptr() as u64, count)
}

/// Deletes what is under `keys`; at an error, which a missing entry is too, as [`write_all`].
pub(super) fn delete_all<K: Pod>(map: &MapData, keys: &[K]) -> Result<(), (usize, io::Error)> {
    batch(bpf_cmd::BPF_MAP_DELETE_BATCH, map, keys.as_ptr() as u64, 0, keys.len())
}

fn batch(command: bpf_cmd, map: &MapData, keys: u64, values: u64, count: usize) -> Result<(), (usize, io::Error)> {
    use std::os::fd::AsFd as _;
    let mut attr = empty_attr();
    attr.batch.keys = keys;
    attr.batch.values = values;
    attr.batch.count = u32::try_from(count).map_err(|error| (0, io::Error::other(error)))?;
    attr.batch.map_fd = map.fd().as_fd().as_raw_fd() as u32;
    bpf(command, &mut attr).map(|_| ()).map_err(|error| {
        // SAFETY: `batch` is the member this call was made with; it holds integers only.
        let done = unsafe { attr.batch.count } as usize;
        // A call that is refused as a whole leaves the count as it was.
        (if done < count { done } else { 0 }, error)
    })
}

fn empty_attr() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of integers, for which all zero bytes are valid.
    unsafe { mem::zeroed() }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the callers set the members that `command` reads, and every pointer among them lives until it returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as u32, attr as *mut bpf_attr, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
