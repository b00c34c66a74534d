//! Whether the kernel encrypts what the stack forwards: packets that go around the stack would leave in the clear.

use std::io;

use super::exchange::Exchange;

// `linux/netlink.h` and `linux/xfrm.h`.
const NETLINK_XFRM: isize = 6;
const GET_POLICY: u16 = 0x15;
/// Bytes of `struct xfrm_userpolicy_id`.
const POLICY_ID: usize = 64;

/// Whether this network namespace has any IPsec policy.
pub fn has_policies() -> io::Result<bool> {
    let mut exchange = match Exchange::open(NETLINK_XFRM) {
        // A kernel without IPsec.
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(false),
        exchange => exchange?,
    };
    let mut found = false;
    exchange.request(GET_POLICY, libc::NLM_F_DUMP, &[0; POLICY_ID], |_policy| found = true)?;
    Ok(found)
}
