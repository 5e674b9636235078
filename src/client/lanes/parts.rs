//! The last groups of a download over a long link, which several lanes fetch in parts.
//!
//! A whole group takes a lane of many a good part of a second: whoever is asked for one last holds up the end of all.
//! So near the end groups are asked for in parts, and a lane owes no more of them than it brings in little more than a
//! round trip, so that all of them end at about the same time. One that is starting brings more and more: it owes its
//! share of what is left, or it would wait for what it is asked for in each round trip.
//!
//! Invariants: each part is asked for over one lane at a time; a group is whole, or split, never both; the buffers of a
//! group are leased when it is split, and leave room for whole groups, so that neither a part nor a group that is owed
//! before it waits for memory that parts hold.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::buffer::{Buffer, Pool};
use crate::client::lanes::pace::{WANTED_MAX, WANTED_MIN};
use crate::client::shelf::{Filling, Shelf};
use crate::hash::group_offset;
use crate::limits::{GROUP_LEN, PART_LEN};

/// There are to be so many lanes for groups to be split.
const LANES_MIN: usize = 2;

/// Groups are split when there are no more than so many left for each lane: what the slowest owes then is to come while
/// the others fetch these.
const GROUPS_PER_LANE: u64 = 3;

/// Bytes that a lane which is starting may owe in any case: as many as where groups are not split.
const STARTING_MAX: usize = WANTED_MIN * GROUP_LEN;
/// How many times as much as it brought a lane may owe that is starting.
const STARTING_GROWTH: u128 = 4;

/// Bytes that a lane owes at most, however fast it is: as many as where groups are not split, and half of what a server
/// lets a connection ask for.
const OWED_MAX: usize = WANTED_MAX * GROUP_LEN;

/// Bytes that are to be free in the pool when the buffers of a group are leased.
const ROOM: usize = 2 * GROUP_LEN;

/// Groups of one download that are fetched in parts.
pub(super) struct Parts {
    /// None where no group is to be split.
    splitting: Option<Splitting>,
    groups: BTreeMap<u64, Split>,
}

/// A group that is fetched in parts.
struct Split {
    len: usize,
    parts: Vec<Part>,
}

#[derive(Clone)]
struct Splitting {
    pool: Pool,
    /// A lane owes what it brings in so much time.
    ahead: Duration,
}

enum Part {
    /// To be asked for.
    Free(Buffer),
    /// Asked for; nothing of it has come.
    Asked(Buffer),
    /// On its way, in a buffer that the lane has.
    Coming,
    /// Here.
    Whole(Buffer),
}

impl Parts {
    /// Of a download that is not split.
    pub(super) fn none() -> Parts {
        Parts { splitting: None, groups: BTreeMap::new() }
    }

    /// All groups that are split, out of this.
    pub(super) fn take(&mut self) -> Parts {
        let splitting = self.splitting.clone();
        Parts { splitting, groups: std::mem::take(&mut self.groups) }
    }

    /// Whether groups may be split from some time on.
    pub(super) fn may_be_split(&self) -> bool {
        self.splitting.is_some()
    }

    /// Splits groups from now on, in buffers of this pool, for lanes to a server that is so far away.
    pub(super) fn let_split(&mut self, pool: Pool, round_trip: Duration) {
        let ahead = round_trip * 3 / 2 + Duration::from_millis(50);
        self.splitting = Some(Splitting { pool, ahead });
    }

    /// Whether groups are to be split now that there are so many left, for so many lanes.
    pub(super) fn is_time(&self, left: u64, lanes: usize) -> bool {
        self.splitting.is_some() && lanes >= LANES_MIN && left <= GROUPS_PER_LANE * lanes as u64
    }

    /// Bytes that are each lane's share of so many groups, and of the parts that nobody was asked for yet.
    pub(super) fn share(&self, left: u64, lanes: usize) -> usize {
        let free = self.groups.values().flat_map(|split| &split.parts).filter(|part| matches!(part, Part::Free(_)));
        let left = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .saturating_mul(GROUP_LEN)
            .saturating_add(free.count() * PART_LEN);
        left / lanes.max(1)
    }

    /// Whether a lane that owes so many bytes and brings so many in a second may owe a part more; one that is starting
    /// and whose share is this.
    pub(super) fn may_owe(&self, owed: usize, rate: u64, starting: Option<usize>) -> bool {
        let Some(Splitting { ahead, .. }) = &self.splitting else { return owed == 0 };
        let brings = u128::from(rate) * ahead.as_millis() / 1000;
        let most = match starting {
            Some(share) => brings.max((STARTING_GROWTH * brings).max(STARTING_MAX as u128).min(share as u128)),
            None => brings,
        };
        owed == 0 || ((owed + PART_LEN / 2) as u128) < most.min(OWED_MAX as u128)
    }

    /// Splits a group of this length. False when there is no room for it.
    pub(super) fn split(&mut self, group: u64, len: usize) -> bool {
        let Some(Splitting { pool, .. }) = &self.splitting else { return false };
        if pool.available() < len + ROOM {
            return false;
        }
        let starts = (0..len).step_by(PART_LEN);
        let parts = starts.map(|start| pool.try_lease(PART_LEN.min(len - start)).map(Part::Free)).collect();
        let Some(parts) = parts else { return false };
        self.groups.insert(group, Split { len, parts });
        true
    }

    /// Whether any part is to be asked for.
    pub(super) fn are_free(&self) -> bool {
        self.groups.values().flat_map(|split| &split.parts).any(|part| matches!(part, Part::Free(_)))
    }

    /// The next part to be asked for: its offset in the file, and its length.
    pub(super) fn ask(&mut self) -> Option<(u64, usize)> {
        let parts = self.groups.iter_mut().flat_map(|(&group, split)| {
            let offsets = (group_offset(group)..).step_by(PART_LEN);
            offsets.zip(&mut split.parts)
        });
        let (offset, part) = { parts }.find(|(_, part)| matches!(part, Part::Free(_)))?;
        let Part::Free(buffer) = std::mem::replace(part, Part::Coming) else { return None };
        let len = buffer.len();
        *part = Part::Asked(buffer);
        Some((offset, len))
    }

    /// Whether what begins here is of a group that is split.
    pub(super) fn has(&self, offset: u64) -> bool {
        self.groups.contains_key(&(offset / GROUP_LEN as u64))
    }

    /// Begins to fill the part that begins here and was asked for.
    pub(super) fn begin(&mut self, offset: u64) -> Option<Filling> {
        let (group, start) = place(offset);
        let part = self.part(group, start)?;
        let Part::Asked(buffer) = std::mem::replace(part, Part::Coming) else { return None };
        Some(Filling::part(group, start, buffer))
    }

    /// A part is here. The whole group, when it was the last.
    pub(super) fn came(&mut self, group: u64, start: usize, buffer: Buffer) -> Option<Vec<Buffer>> {
        *self.part(group, start)? = Part::Whole(buffer);
        if !self.groups.get(&group)?.parts.iter().all(|part| matches!(part, Part::Whole(_))) {
            return None;
        }
        let parts = self.groups.remove(&group)?.parts.into_iter();
        Some(parts.filter_map(|part| if let Part::Whole(buffer) = part { Some(buffer) } else { None }).collect())
    }

    /// The lane that was filling a part has died.
    pub(super) fn give_back(&mut self, group: u64, start: usize, buffer: Buffer) {
        if let Some(part) = self.part(group, start) {
            *part = Part::Free(buffer);
        }
    }

    /// The lane that owed the part in which this lies has died: it is to be asked for again.
    pub(super) fn lost(&mut self, offset: u64) {
        let (group, start) = place(offset);
        if let Some(part) = self.part(group, start) {
            *part = match std::mem::replace(part, Part::Coming) {
                Part::Asked(buffer) => Part::Free(buffer),
                other => other,
            };
        }
    }

    /// Gives up all groups that are split, and lays what is here of their beginnings on this shelf.
    pub(super) fn give_up(&mut self, shelf: &Shelf) -> Vec<u64> {
        let groups = std::mem::take(&mut self.groups);
        let Some(Splitting { pool, .. }) = &self.splitting else { return Vec::new() };
        let indices = groups.keys().copied().collect();
        for (group, Split { len, parts }) in groups {
            let begun =
                parts.into_iter().map_while(|part| if let Part::Whole(part) = part { Some(part) } else { None });
            let begun: Vec<Buffer> = begun.collect();
            if begun.is_empty() {
                continue;
            }
            // Without room, it is asked for from its start.
            let Some(buffer) = pool.try_lease(len) else { continue };
            let mut filling = shelf.begin(group, buffer);
            for part in begun {
                if let Some(space) = filling.space(part.len()) {
                    space.copy_from_slice(&part);
                    filling.advance(part.len());
                }
            }
        }
        indices
    }

    fn part(&mut self, group: u64, start: usize) -> Option<&mut Part> {
        self.groups.get_mut(&group)?.parts.get_mut(start / PART_LEN)
    }
}

/// The group in which this offset lies, and where the part in which it lies begins in it.
fn place(offset: u64) -> (u64, usize) {
    let group = offset / GROUP_LEN as u64;
    let inside = usize::try_from(offset - group_offset(group)).unwrap_or(0);
    (group, inside / PART_LEN * PART_LEN)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::super::front::Front;
    use super::super::pace::FLAT_MIN;
    use super::super::{Asked, Carrier, Lanes, Place, Report};
    use super::*;
    use crate::hash::group_len;
    use crate::net::Handler as _;

    const FAR: Duration = Duration::from_millis(100);
    /// Two groups, the second one of a part and a half.
    const SIZE: u64 = (GROUP_LEN + PART_LEN + PART_LEN / 2) as u64;

    /// A lane that has just been let in.
    fn new_lane(lanes: &Lanes, pool: &Pool) -> Front {
        let count = 2 + lanes.lock().lanes.len();
        assert_eq!(lanes.missing(count), 1);
        let number = lanes.enter(Place::Task).unwrap();
        Front::let_in(lanes, number, Place::Task, pool)
    }

    /// One that brings no more and more.
    fn lane(lanes: &Lanes, pool: &Pool) -> Front {
        let front = new_lane(lanes, pool);
        lanes.lock().lanes.get_mut(&front.number).unwrap().rate.flat = FLAT_MIN;
        front
    }

    /// What a lane owes: offsets and lengths.
    fn owed(front: &Front) -> Vec<(u64, usize)> {
        let state = front.lanes.lock();
        let wanted = state.lanes[&front.number].wanted.get(&7);
        wanted.map(|wanted| wanted.ranges.iter().map(|&(offset, len, _)| (offset, len)).collect()).unwrap_or_default()
    }

    /// The server's bytes at an offset.
    fn content(offset: u64) -> u8 {
        (offset / 1000 % 251) as u8
    }

    /// So much of what a lane owes next comes over it.
    fn bring(front: &mut Front, len: usize) {
        let (mut offset, mut left) = (owed(front)[0].0, len);
        while left > 0 {
            let piece = left.min(100_000);
            let space = front.poll_space(&mut Context::from_waker(Waker::noop()), 7, offset, piece);
            let Poll::Ready(Ok(space)) = space else { panic!("no space at {offset}") };
            let taken = space.len();
            (offset..).zip(space).for_each(|(offset, byte)| *byte = content(offset));
            front.filled(7, offset, taken).unwrap();
            (offset, left) = (offset + taken as u64, left - taken);
        }
    }

    /// Groups that came and groups that were lost, all that is told now.
    async fn told(carrier: &mut Carrier) -> (Vec<u64>, Vec<u64>) {
        let (mut came, mut lost) = (Vec::new(), Vec::new());
        loop {
            let mut next = pin!(carrier.next());
            match std::future::poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx))).await {
                Poll::Pending => return (came, lost),
                Poll::Ready(Report::Came(group, parts)) => {
                    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
                    assert_eq!(bytes.len(), group_len(SIZE, group));
                    assert!((group_offset(group)..).zip(bytes).all(|(offset, byte)| byte == content(offset)));
                    came.push(group);
                }
                Poll::Ready(Report::Lost(group)) => lost.push(group),
                Poll::Ready(Report::MayAsk) => {}
                Poll::Ready(_) => panic!("something else was told"),
            }
        }
    }

    fn part(index: u64) -> (u64, usize) {
        let offset = index * PART_LEN as u64;
        (offset, PART_LEN.min((SIZE - offset) as usize))
    }

    /// A download whose groups may be split, two lanes, and what is left of its groups.
    fn begin(pool: &Pool, shelf: &Shelf) -> (Lanes, Carrier, [Front; 2]) {
        let lanes = Lanes::new();
        let carrier = lanes.carry(7, shelf.clone());
        carrier.let_split(pool, FAR);
        let fronts = [lane(&lanes, pool), lane(&lanes, pool)];
        (lanes, carrier, fronts)
    }

    #[tokio::test]
    async fn the_last_groups_come_in_parts_over_all_lanes() {
        let pool = Pool::new(8 * GROUP_LEN);
        let (_lanes, mut carrier, mut fronts) = begin(&pool, &Shelf::default());
        let mut groups = 0..2;
        let mut ask = |carrier: &Carrier| carrier.ask(SIZE, groups.end - groups.start, || groups.next());
        assert_eq!(ask(&carrier), Asked { groups: 1, is_end: true });
        let mut order: Vec<_> = fronts.iter().map(|front| (owed(front)[0].0, front.number)).collect();
        order.sort_unstable();
        assert_eq!(order.iter().map(|&(offset, _)| offset).collect::<Vec<_>>(), [part(0).0, part(1).0]);
        // One of them is slow, and holds up its own part only.
        fronts.sort_by_key(|front| owed(front)[0].0);
        let [slow, fast] = &mut fronts;
        bring(slow, 1000);
        let mut fetched = Vec::new();
        let mut begun = 1;
        while let Some(&(offset, len)) = owed(fast).first() {
            assert_eq!(owed(fast).len(), 1, "it is not known how fast it is");
            fetched.push((offset, len));
            bring(fast, len);
            begun += ask(&carrier).groups;
        }
        assert_eq!((fetched, begun), ((1..6).map(part).collect(), 2));
        assert_eq!(told(&mut carrier).await, (vec![1], vec![]));
        bring(slow, PART_LEN - 1000);
        assert_eq!(told(&mut carrier).await, (vec![0], vec![]));
        assert_eq!(pool.available(), 8 * GROUP_LEN, "nothing is held any more");
    }

    #[tokio::test]
    async fn what_a_dead_lane_owed_goes_to_the_others_and_the_last_one_leaves_the_beginnings() {
        let pool = Pool::new(8 * GROUP_LEN);
        let shelf = Shelf::default();
        let (lanes, mut carrier, mut fronts) = begin(&pool, &shelf);
        let mut groups = 0..1;
        assert_eq!(carrier.ask(SIZE, 1, || groups.next()).groups, 1);
        fronts.sort_by_key(|front| owed(front)[0].0);
        let [mut dying, mut other] = fronts;
        bring(&mut dying, 5000);
        drop(dying);
        assert_eq!(told(&mut carrier).await, (vec![], vec![]), "no group is lost");
        bring(&mut other, PART_LEN);
        assert_eq!(carrier.ask(SIZE, 0, || None), Asked { groups: 0, is_end: false });
        assert_eq!(owed(&other), [part(0)], "anew from its start");
        bring(&mut other, PART_LEN);
        carrier.ask(SIZE, 0, || None);
        assert_eq!(owed(&other), [part(2)]);
        // One of which nothing has come yet.
        let late = lane(&lanes, &pool);
        carrier.ask(SIZE, 0, || None);
        assert_eq!(owed(&late), [part(3)]);
        drop(late);
        bring(&mut other, PART_LEN);
        carrier.ask(SIZE, 0, || None);
        assert_eq!(owed(&other), [part(3)]);
        bring(&mut other, 7);
        drop(other);
        assert_eq!(told(&mut carrier).await, (vec![], vec![0]));
        assert_eq!(shelf.begun(0), 3 * PART_LEN);
        // The first connection, or a new lane, fetches the rest as one.
        let mut rest = lane(&lanes, &pool);
        let mut groups = 0..1;
        assert_eq!(carrier.ask(SIZE, 1, || groups.next()), Asked { groups: 1, is_end: false });
        assert_eq!(owed(&rest), [(3 * PART_LEN as u64, GROUP_LEN - 3 * PART_LEN)]);
        bring(&mut rest, GROUP_LEN - 3 * PART_LEN);
        assert_eq!(told(&mut carrier).await, (vec![0], vec![]));
        assert_eq!(pool.available(), 8 * GROUP_LEN);
    }

    #[tokio::test]
    async fn a_session_that_ends_leaves_what_came_of_the_beginnings_of_groups() {
        let pool = Pool::new(8 * GROUP_LEN);
        let shelf = Shelf::default();
        let (lanes, carrier, mut fronts) = begin(&pool, &shelf);
        let mut groups = 0..2;
        assert_eq!(carrier.ask(SIZE, 2, || groups.next()).groups, 1);
        fronts.sort_by_key(|front| owed(front)[0].0);
        bring(&mut fronts[0], PART_LEN);
        lanes.end();
        drop((fronts, carrier));
        assert_eq!((shelf.groups(), shelf.begun(0)), (vec![0], PART_LEN));
        assert_eq!(pool.available(), 7 * GROUP_LEN, "the shelf holds one group");
    }

    #[tokio::test]
    async fn without_room_or_a_word_that_groups_may_be_split_they_come_whole() {
        let pool = Pool::new(8 * GROUP_LEN);
        let lanes = Lanes::new();
        let carrier = lanes.carry(7, Shelf::default());
        let fronts = [lane(&lanes, &pool), lane(&lanes, &pool)];
        let mut groups = 0..1;
        assert_eq!(carrier.ask(SIZE, 1, || groups.next()), Asked { groups: 1, is_end: false });
        let whole: Vec<_> = fronts.iter().flat_map(owed).collect();
        assert_eq!(whole, [(0, GROUP_LEN)]);

        let pool = Pool::new(3 * GROUP_LEN);
        let (_lanes, mut carrier, mut fronts) = begin(&pool, &Shelf::default());
        let held = pool.try_lease(1).unwrap();
        let mut groups = 0..1;
        assert_eq!(carrier.ask(SIZE, 1, || groups.next()), Asked { groups: 1, is_end: true });
        fronts.sort_by_key(|front| owed(front).is_empty());
        assert_eq!(owed(&fronts[0]), [(0, GROUP_LEN)]);
        drop(held);
        bring(&mut fronts[0], GROUP_LEN);
        assert_eq!(told(&mut carrier).await, (vec![0], vec![]));
    }

    #[test]
    fn a_lane_owes_what_it_brings_in_little_more_than_a_round_trip() {
        let mut parts = Parts::none();
        assert!(!parts.is_time(1, 24) && parts.may_owe(0, 0, None) && !parts.may_owe(1, u64::MAX, None));
        parts.let_split(Pool::new(GROUP_LEN), FAR);
        let times = [(6, 2, true), (7, 2, false), (72, 24, true), (73, 24, false), (1, 1, false), (1, 0, false)];
        for (left, lanes, expected) in times {
            assert_eq!(parts.is_time(left, lanes), expected, "{left} groups, {lanes} lanes");
        }
        // 200 ms.
        let most = 5_000_000 / 5 - PART_LEN / 2;
        for (owed, rate, expected) in [
            (0, 0, true),
            (1, 0, false),
            (most - 1, 5_000_000, true),
            (most, 5_000_000, false),
            (OWED_MAX - PART_LEN, u64::MAX, true),
            (OWED_MAX, u64::MAX, false),
        ] {
            assert_eq!(parts.may_owe(owed, rate, None), expected, "{owed} bytes, {rate} a second");
        }
    }

    #[test]
    fn a_lane_that_is_starting_owes_its_share_or_some_times_what_it_brings() {
        let mut parts = Parts::none();
        assert!(parts.may_owe(0, 0, Some(GROUP_LEN)) && !parts.may_owe(1, 0, Some(GROUP_LEN)));
        parts.let_split(Pool::new(GROUP_LEN), FAR);
        let half = PART_LEN / 2;
        // In 200 ms: a group, or eight.
        let (slow, fast) = (5 * GROUP_LEN as u64, 40 * GROUP_LEN as u64);
        for (what, rate, share, most) in [
            ("nothing is known yet", 0, 100 * GROUP_LEN, 2 * GROUP_LEN),
            ("its share is less", 0, GROUP_LEN, GROUP_LEN),
            ("it grows", slow, 100 * GROUP_LEN, 4 * GROUP_LEN),
            ("it grows, its share is less", slow, 3 * GROUP_LEN, 3 * GROUP_LEN),
            ("what it brings anyway", fast, GROUP_LEN, 8 * GROUP_LEN),
        ] {
            assert!(parts.may_owe(most - half - 1, rate, Some(share)), "{what}");
            assert!(!parts.may_owe(most - half, rate, Some(share)), "{what}");
        }
        assert!(parts.may_owe(0, 0, Some(0)), "at the very end");
    }

    #[tokio::test]
    async fn lanes_that_owe_much_to_another_download_are_asked_for_something_of_each() {
        let pool = Pool::new(32 * GROUP_LEN);
        let (lanes, mut carrier, mut fronts) = begin(&pool, &Shelf::default());
        let other = lanes.carry(6, Shelf::default());
        let mut many = 0..99;
        assert_eq!(other.ask(99 * GROUP_LEN as u64, 99, || many.next()), Asked { groups: 4, is_end: false });
        let mut groups = 0..2;
        let mut ask = |carrier: &Carrier| carrier.ask(SIZE, groups.end - groups.start, || groups.next());
        assert_eq!(ask(&carrier), Asked { groups: 1, is_end: true });
        let mut fetched = 0;
        while fetched < 6 {
            assert!(fronts.iter().any(|front| !owed(front).is_empty()), "nobody owes any of the {} left", 6 - fetched);
            for front in &mut fronts {
                assert!(owed(front).len() <= 1);
                while let Some(&(_, len)) = owed(front).first() {
                    bring(front, len);
                    fetched += 1;
                }
            }
            ask(&carrier);
        }
        assert_eq!(told(&mut carrier).await, (vec![0, 1], vec![]));
    }

    #[tokio::test]
    async fn a_small_file_is_shared_out_at_once_among_lanes_that_are_starting() {
        const SIZE: u64 = 6 * GROUP_LEN as u64;
        let pool = Pool::new(16 * GROUP_LEN);
        let lanes = Lanes::new();
        let carrier = lanes.carry(7, Shelf::default());
        carrier.let_split(&pool, FAR);
        let fronts: Vec<Front> = (0..4).map(|_| new_lane(&lanes, &pool)).collect();
        let mut groups = 0..6;
        assert_eq!(carrier.ask(SIZE, 6, || groups.next()), Asked { groups: 6, is_end: true });
        let lens = fronts.iter().map(|front| owed(front).iter().map(|&(_, len)| len).sum::<usize>());
        assert_eq!(lens.collect::<Vec<_>>(), [6 * PART_LEN; 4]);
        let mut offsets: Vec<u64> = fronts.iter().flat_map(owed).map(|(offset, _)| offset).collect();
        offsets.sort_unstable();
        assert_eq!(offsets, (0..24).map(|part| part * PART_LEN as u64).collect::<Vec<_>>());
    }
}
