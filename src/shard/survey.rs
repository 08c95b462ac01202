//! What operators look at, over all shards: live allocations, and how much of what there is they use.

use crate::base::Clock;
use crate::metrics::{Capacity, NamedAllocation, Survey};
use crate::turn::{AllocationView, Attempts, Direction};

use super::mailbox::Message;
use super::ports::lock;
use super::{Shards, name, parse_name};

impl Shards {
    /// The busiest `most` live allocations by current bits/s, busiest first; all of them if `most` is `usize::MAX`.
    pub async fn allocations(&self, most: usize) -> Vec<NamedAllocation> {
        match most {
            0 => Vec::new(),
            most => self.survey(most, |_| true).await.busiest,
        }
    }

    /// Walks all live allocations, page by page: sums over all, and the busiest `most` of those that are `wanted`.
    pub async fn survey(
        &self,
        most: usize,
        wanted: impl Fn(&AllocationView) -> bool + Send + Sync,
    ) -> Survey {
        let mut survey = Survey::default();
        for shard in 0..self.handles.len() {
            self.each_page(shard, |view| {
                for direction in Direction::ALL {
                    survey.bits_per_second[view.transport as usize][direction as usize] +=
                        view.bits_per_second[direction as usize];
                }
                survey.calls.extend(view.quality.as_deref());
                if !wanted(&view) {
                    return;
                }
                survey.found += 1;
                survey.busiest.push(NamedAllocation {
                    name: name(shard, view.id),
                    shard,
                    view,
                });
                // Twice the bound is kept and then cut, so that memory stays bounded and sorting rare.
                if survey.busiest.len() / 2 > most {
                    cut(&mut survey.busiest, most);
                }
            })
            .await;
        }
        cut(&mut survey.busiest, most);
        survey
    }

    /// The live allocation named `wanted`.
    pub async fn allocation(&self, wanted: &str) -> Option<NamedAllocation> {
        let (shard, id) = parse_name(wanted)?;
        let page = |answer| Message::Views {
            from: id.slot as usize,
            count: 1,
            answer,
        };
        let (views, _) = self.handles.get(shard)?.ask(page).await?;
        let view = views.into_iter().find(|view| view.id == id)?;
        Some(NamedAllocation {
            name: name(shard, id),
            shard,
            view,
        })
    }

    /// What became of those who wanted an allocation since this was asked last, over all shards. One that does not answer
    /// is asked again the next time.
    pub async fn attempts(&self) -> Attempts {
        let mut total = Attempts::default();
        for handle in self.handles.iter() {
            if let Some(attempts) = handle.ask(Message::Attempts).await {
                total.merge(attempts);
            }
        }
        total
    }

    /// What allocations use up, whether the shards answer or not.
    pub fn capacity(&self) -> Capacity {
        let pools = lock(&self.pools);
        let pool = self.pool_in(&pools);
        pool.end_reservations(Clock.now().mono);
        // Ports that rest are free.
        let in_use = |family: usize| pools.iter().map(|pool| pool.in_use()[family] as u64).sum();
        Capacity {
            ports_in_use: std::array::from_fn(in_use),
            ports: pool.total().map(u64::from),
            allocations: pool.live() as u64,
            limit: u64::from(pool.limit()),
            realms: pool.realms(),
        }
    }

    /// Share of the most limiting resource in use (relay ports of a family, or `limits.allocations`), 0.0 to 1.0.
    pub fn capacity_ratio(&self) -> f64 {
        self.capacity().ratio()
    }
}

fn cut(found: &mut Vec<NamedAllocation>, most: usize) {
    let rate = |named: &NamedAllocation| named.view.bits_per_second.iter().sum::<u64>();
    found.sort_by(|a, b| rate(b).cmp(&rate(a)).then_with(|| a.name.cmp(&b.name)));
    found.truncate(most);
}
