//! What shards remember of a user, an address or an allocation.

use crate::turn::Subject;
use crate::why::{Evidence, Query};

use super::mailbox::Message;
use super::{Shards, name, parse_name};

impl Shards {
    /// Everything that is known of whom `query` names, in the order of time.
    pub async fn why(&self, query: &Query) -> Evidence {
        let mut evidence = Evidence::default();
        for (shard, handle) in self.handles.iter().enumerate() {
            let subject = match query {
                Query::User(user) => Subject::User(user.clone()),
                Query::Address(address) => Subject::Address(address.clone()),
                Query::Allocation(allocation) => match parse_name(allocation) {
                    Some((owner, id)) if owner == shard => Subject::Allocation(id),
                    _ => continue,
                },
            };
            let mut live = Vec::new();
            self.each_page(shard, |view| {
                if subject.is_view(&view) && live.len() < MOST_CALLS {
                    live.push(view);
                }
            })
            .await;
            let ids = live.iter().map(|view| view.id).collect();
            let ask = |answer| Message::Why {
                subject,
                live: ids,
                answer,
            };
            let Some(remembered) = handle.ask(ask).await else {
                continue;
            };
            evidence.add(live, remembered, |id| name(shard, id));
        }
        evidence.sort();
        evidence
    }
}

/// Live allocations of one shard that are looked at for one question, at most.
const MOST_CALLS: usize = 256;
