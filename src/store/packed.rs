//! The records of a group as a file keeps them: what they repeat of each other is written once (LZ4's block format).

/// `bytes`, packed where that saves a page or more; with their length then, without which they cannot be unpacked.
pub(super) fn pack(bytes: Vec<u8>) -> (Vec<u8>, Option<i64>) {
    if !(PAGE..=MOST).contains(&bytes.len()) {
        return (bytes, None);
    }
    let packed = lz4_flex::block::compress(&bytes);
    match i64::try_from(bytes.len()) {
        Ok(length) if packed.len() + PAGE <= bytes.len() => (packed, Some(length)),
        Ok(_) | Err(_) => (bytes, None),
    }
}

/// What [`pack`] was given. Empty where it cannot be had again: a group without its records is a fault of the log, which
/// whoever verifies it is told of.
pub(super) fn unpack(bytes: Vec<u8>, length: Option<i64>) -> Vec<u8> {
    let Some(length) = length else { return bytes };
    // Somebody may have written any length there.
    let length = usize::try_from(length).ok().filter(|length| *length <= MOST);
    let unpacked = length.and_then(|length| lz4_flex::block::decompress(&bytes, length).ok());
    unpacked.filter(|unpacked| Some(unpacked.len()) == length).unwrap_or_default()
}

/// Of SQLite.
const PAGE: usize = 4096;

/// More than a group is, ordinarily.
const MOST: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn records(count: usize) -> Vec<u8> {
        (0..count).flat_map(|number| format!("{number:08} entra:1:2 may have vertex-training;").into_bytes()).collect()
    }

    #[test]
    fn what_repeats_itself_takes_less_room_and_comes_back() {
        let bytes = records(1000);
        let (packed, length) = pack(bytes.clone());
        assert!(packed.len() < bytes.len() / 2, "{}", packed.len());
        assert_eq!(unpack(packed, length), bytes);
    }

    #[test]
    fn what_would_save_no_page_stays_as_it_is() {
        let noise = |length| std::iter::repeat_with(rand::random).take(length).collect::<Vec<u8>>();
        for bytes in [Vec::new(), records(20), noise(100_000), vec![0; MOST + 1]] {
            assert_eq!(pack(bytes.clone()), (bytes.clone(), None));
            assert_eq!(unpack(bytes.clone(), None), bytes);
        }
    }

    #[test]
    fn what_was_changed_in_the_file_gives_no_records_and_no_more_memory_than_a_group_has() {
        let bytes = records(1000);
        let (packed, length) = pack(bytes.clone());
        let length = length.expect("packed");
        for wrong in [-1, 0, 1, length - 1, length + 1, i64::MAX] {
            assert_eq!(unpack(packed.clone(), Some(wrong)), Vec::<u8>::new(), "{wrong}");
        }
        for cut in [0, 1, packed.len() / 2, packed.len() - 1] {
            assert_eq!(unpack(packed[..cut].to_vec(), Some(length)), Vec::<u8>::new(), "{cut}");
        }
    }
}
