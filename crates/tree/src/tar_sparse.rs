//! Sparse files in tar: the map of regions that hold data, its text form of GNU format 1.0, and walking it as a
//! content with holes. Pure arithmetic over checked maps.

/// A region of a sparse file that holds data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// Where it starts in the file.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// A checked map and how far it was read.
#[derive(Debug)]
pub(crate) struct SparseMap {
    regions: Vec<Region>,
    size: u64,
    position: u64,
    next: usize,
}

/// What comes next in the content.
pub(crate) enum Run {
    End,
    Hole(usize),
    Data(usize),
}

impl SparseMap {
    /// Regions must ascend without overlap, lie in `size`, and be `stored` bytes together.
    pub(crate) fn new(mut regions: Vec<Region>, size: u64, stored: u64) -> Result<Self, &'static str> {
        let (mut end, mut sum) = (0u64, 0u64);
        for region in &regions {
            if region.offset < end {
                return Err("regions overlap or descend");
            }
            end = region.offset.checked_add(region.length).ok_or("a region is too long")?;
            sum = sum.checked_add(region.length).ok_or("regions are too long")?;
        }
        if end > size {
            return Err("a region lies beyond the end of the file");
        }
        if sum != stored {
            return Err("the regions are not as long as the stored content");
        }
        regions.retain(|region| region.length > 0);
        Ok(Self { regions, size, position: 0, next: 0 })
    }

    pub(crate) fn regions(&self) -> &[Region] {
        &self.regions
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn next_run(&mut self, most: usize) -> Run {
        let clamp = |length: u64| most.min(usize::try_from(length).unwrap_or(usize::MAX));
        if let Some(region) = self.regions.get(self.next) {
            if self.position < region.offset {
                return Run::Hole(clamp(region.offset - self.position));
            }
            return Run::Data(clamp((region.offset + region.length).saturating_sub(self.position)));
        }
        if self.position < self.size { Run::Hole(clamp(self.size - self.position)) } else { Run::End }
    }

    pub(crate) fn advance(&mut self, length: usize) {
        self.position += length as u64;
        if self.regions.get(self.next).is_some_and(|r| self.position >= r.offset.saturating_add(r.length)) {
            self.next += 1;
        }
    }
}

/// Offsets and lengths by turns as regions; `count` must agree where given.
pub(crate) fn pairs(numbers: &[u64], count: Option<u64>) -> Result<Vec<Region>, &'static str> {
    if !numbers.len().is_multiple_of(2) || count.is_some_and(|count| count != (numbers.len() / 2) as u64) {
        return Err("wrong number of regions");
    }
    Ok(numbers.chunks_exact(2).map(|pair| Region { offset: pair[0], length: pair[1] }).collect())
}

/// The map of GNU format 1.0: decimal numbers a line, the count of regions first.
#[derive(Default)]
pub(crate) struct Head {
    numbers: Vec<u64>,
    line: Vec<u8>,
}

impl Head {
    /// How many regions were read.
    pub(crate) fn len(&self) -> usize {
        self.numbers.len() / 2
    }

    /// Takes one block; true when the map is complete.
    pub(crate) fn feed(&mut self, block: &[u8]) -> Result<bool, &'static str> {
        const MOST_DIGITS: usize = 20;
        for c in block {
            if self.complete() {
                return Ok(true);
            }
            if *c == b'\n' {
                self.numbers.push(crate::tar_pax::decimal(&self.line).ok_or("not numbers")?);
                self.line.clear();
            } else if self.line.len() < MOST_DIGITS {
                self.line.push(*c);
            } else {
                return Err("not numbers");
            }
        }
        Ok(self.complete())
    }

    pub(crate) fn regions(&self) -> Result<Vec<Region>, &'static str> {
        let (count, numbers) = self.numbers.split_first().ok_or("no count")?;
        pairs(numbers, Some(*count))
    }

    fn complete(&self) -> bool {
        match self.numbers.split_first() {
            None => false,
            Some((count, rest)) => (rest.len() as u64) / 2 >= *count && rest.len().is_multiple_of(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_checked() {
        let r = |offset, length| Region { offset, length };
        assert!(SparseMap::new(vec![r(0, 5), r(10, 5)], 20, 10).is_ok());
        assert!(SparseMap::new(vec![r(10, 5), r(0, 5)], 20, 10).is_err());
        assert!(SparseMap::new(vec![r(0, 5), r(4, 5)], 20, 10).is_err());
        assert!(SparseMap::new(vec![r(0, 25)], 20, 25).is_err());
        assert!(SparseMap::new(vec![r(0, 5)], 20, 6).is_err());
        assert!(SparseMap::new(vec![r(u64::MAX, 5)], u64::MAX, 5).is_err());
    }

    #[test]
    fn heads_end_where_the_count_says() {
        let mut head = Head::default();
        assert_eq!(head.feed(b"2\n0\n512\n1024\n5"), Ok(false));
        assert_eq!(head.feed(b"12\n\0\0\0"), Ok(true));
        assert_eq!(
            head.regions().unwrap(),
            [Region { offset: 0, length: 512 }, Region { offset: 1024, length: 512 }]
        );
        let mut head = Head::default();
        assert_eq!(head.feed(b"0\n\0"), Ok(true));
        assert_eq!(Head::default().feed(b"x\n"), Err("not numbers"));
    }
}
