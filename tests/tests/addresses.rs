//! The set of addresses whose copies share, against an ordinary set.

use std::collections::BTreeSet;
use std::net::IpAddr;

use portcullis_core::addresses::Addresses;
use proptest::collection::vec;
use proptest::prelude::*;

fn address(number: u32) -> IpAddr {
    IpAddr::V4(number.into())
}

proptest! {
    #[test]
    fn they_are_a_set_and_tell_what_changed(
        start in 0u32..3000,
        changes in vec((any::<bool>(), 0u32..3000), 0..1500),
    ) {
        let mut addresses: Addresses = (0..start).map(|n| address(n * 3 % 3000)).collect();
        let mut expected: BTreeSet<IpAddr> = addresses.iter().collect();
        let (earlier, before) = (addresses.clone(), expected.clone());
        for (add, number) in changes {
            let address = address(number);
            if add {
                prop_assert_eq!(addresses.insert(address), expected.insert(address));
            } else {
                prop_assert_eq!(addresses.remove(address), expected.remove(&address));
            }
            prop_assert_eq!(addresses.contains(address), add);
        }
        prop_assert!(addresses.iter().eq(expected.iter().copied()));
        prop_assert_eq!(addresses.len(), expected.len());
        prop_assert_eq!(addresses.is_empty(), expected.is_empty());
        prop_assert_eq!(addresses.exceed(100), expected.len() > 100);
        prop_assert!(earlier.iter().eq(before.iter().copied()), "the copy is another now");
        let (added, removed) = addresses.changes(&earlier);
        prop_assert!(added.iter().eq(expected.difference(&before)));
        prop_assert!(removed.iter().eq(before.difference(&expected)));
        prop_assert_eq!(addresses == earlier, expected == before);
        let both: Vec<IpAddr> = expected.intersection(&before).copied().collect();
        prop_assert_eq!(addresses.among(&before), both);
        prop_assert_eq!(&addresses, &expected.into_iter().collect::<Addresses>());
    }
}
