//! A set of addresses of which copies share what is equal.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::FxHashSet;

use crate::net::{Family, IpRange};

/// A chunk has at most so many addresses.
const CHUNK: usize = 512;

type Chunk = Arc<Vec<IpAddr>>;

/// Addresses of both families, ascending, each once.
///
/// A copy costs nothing, and its first change a look at each chunk: all but what lies next to the
/// changed address stays shared, and [`Addresses::changes`] passes over it.
#[derive(Clone, Default, Eq)]
pub struct Addresses {
    /// None is empty, and each begins after the end of the one before.
    chunks: Arc<Vec<Chunk>>,
}

impl Addresses {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Whether there are more than so many. It does not count further than it must.
    pub fn exceed(&self, count: usize) -> bool {
        let mut left = count;
        self.chunks.iter().any(|chunk| match left.checked_sub(chunk.len()) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        })
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.chunks.iter().flat_map(|chunk| chunk.iter().copied())
    }

    /// Those of a family, ascending.
    pub fn of(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        let first = IpRange::all(family).first;
        let from = self.chunks.get(self.chunk_of(first)..).unwrap_or_default();
        let all = from.iter().flat_map(|chunk| chunk.iter().copied());
        let after = all.skip_while(move |address| *address < first);
        after.take_while(move |address| Family::of(*address) == family)
    }

    /// Whether the address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        let chunk = self.chunks.get(self.chunk_of(address));
        chunk.is_some_and(|chunk| chunk.binary_search(&address).is_ok())
    }

    /// Those of some addresses, which come ascending, that are among these.
    pub fn among<'a>(&self, ascending: impl IntoIterator<Item = &'a IpAddr>) -> Vec<IpAddr> {
        let mut rest: &[IpAddr] = &[];
        let mut among = Vec::new();
        for address in ascending {
            if rest.last().is_none_or(|last| last < address) {
                let chunk = self.chunks.get(self.chunk_of(*address));
                rest = chunk.map_or(&[], |chunk| &chunk[..]);
            }
            rest = &rest[rest.partition_point(|next| next < address)..];
            if rest.first() == Some(address) {
                among.push(*address);
            }
        }
        among
    }

    /// Adds an address. Tells whether it is new.
    pub fn insert(&mut self, address: IpAddr) -> bool {
        let index = self.chunk_of(address);
        let at = match self.chunks.get(index).map(|chunk| chunk.binary_search(&address)) {
            Some(Ok(_)) => return false,
            Some(Err(at)) => at,
            None => 0,
        };
        let chunks = Arc::make_mut(&mut self.chunks);
        let Some(chunk) = chunks.get_mut(index) else {
            chunks.push(Arc::new(vec![address]));
            return true;
        };
        let chunk = Arc::make_mut(chunk);
        chunk.insert(at, address);
        if chunk.len() > CHUNK {
            // What comes in ascending order fills its chunks.
            let at = if at == CHUNK { CHUNK } else { CHUNK / 2 };
            let upper = chunk.split_off(at);
            chunks.insert(index + 1, Arc::new(upper));
        }
        true
    }

    /// Removes an address. Tells whether it was there.
    pub fn remove(&mut self, address: IpAddr) -> bool {
        let index = self.chunk_of(address);
        let found = self.chunks.get(index).map(|chunk| chunk.binary_search(&address));
        let Some(Ok(at)) = found else { return false };
        let chunks = Arc::make_mut(&mut self.chunks);
        match &mut chunks[index] {
            chunk if chunk.len() == 1 => _ = chunks.remove(index),
            chunk => _ = Arc::make_mut(chunk).remove(at),
        }
        true
    }

    /// What these have and the earlier ones have not, and the other way round; both ascending. Of
    /// what they share, no more than its place is looked at.
    pub fn changes(&self, earlier: &Addresses) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let (new, old) = self.apart(earlier);
        let pointers = |chunks: &[Chunk]| chunks.iter().map(Arc::as_ptr).collect::<FxHashSet<_>>();
        let (ours, theirs) = (pointers(new), pointers(old));
        let unknown = |chunks: &[Chunk], known: &FxHashSet<_>| -> Vec<IpAddr> {
            let unknown = chunks.iter().filter(|chunk| !known.contains(&Arc::as_ptr(chunk)));
            unknown.flat_map(|chunk| chunk.iter().copied()).collect()
        };
        let (new, old) = (unknown(new, &theirs), unknown(old, &ours));
        (missing(&new, &old), missing(&old, &new))
    }

    /// Whether they share everything, and so are equal. Others can be equal too.
    pub fn same(&self, other: &Addresses) -> bool {
        Arc::ptr_eq(&self.chunks, &other.chunks) || matches!(self.apart(other), ([], []))
    }

    /// What is left of both without the chunks that they share at the beginning and at the end.
    fn apart<'a>(&'a self, other: &'a Addresses) -> (&'a [Chunk], &'a [Chunk]) {
        let (mut ours, mut theirs) = (&self.chunks[..], &other.chunks[..]);
        while let ([a, rest @ ..], [b, others @ ..]) = (ours, theirs)
            && Arc::ptr_eq(a, b)
        {
            (ours, theirs) = (rest, others);
        }
        while let ([rest @ .., a], [others @ .., b]) = (ours, theirs)
            && Arc::ptr_eq(a, b)
        {
            (ours, theirs) = (rest, others);
        }
        (ours, theirs)
    }

    /// Where the address is, or would have to be.
    fn chunk_of(&self, address: IpAddr) -> usize {
        let after = self.chunks.partition_point(|chunk| chunk[0] <= address);
        after.saturating_sub(1)
    }
}

impl PartialEq for Addresses {
    fn eq(&self, other: &Addresses) -> bool {
        let (ours, theirs) = self.apart(other);
        ours.iter().flat_map(|chunk| &**chunk).eq(theirs.iter().flat_map(|chunk| &**chunk))
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Addresses {
        let mut sorted: Vec<IpAddr> = addresses.into_iter().collect();
        sorted.sort_unstable();
        sorted.dedup();
        let chunks = sorted.chunks(CHUNK).map(|chunk| Arc::new(chunk.to_vec()));
        Addresses { chunks: Arc::new(chunks.collect()) }
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Those of the first that are not in the second; both are ascending.
fn missing(from: &[IpAddr], of: &[IpAddr]) -> Vec<IpAddr> {
    let mut others = of.iter().peekable();
    let mut is_missing = |address: &IpAddr| {
        while others.next_if(|other| *other < address).is_some() {}
        others.next_if_eq(&address).is_none()
    };
    from.iter().copied().filter(|address| is_missing(address)).collect()
}
