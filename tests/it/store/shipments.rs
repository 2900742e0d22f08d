//! How far ways out have come, in both stores, and which replica ships.

use std::time::Duration;

use carnet::audit::Gap;
use uuid::Uuid;

use super::Place;
use crate::postgres::with_database;
use crate::support::eventually;

const ONE: Uuid = Uuid::from_u128(1);
const TWO: Uuid = Uuid::from_u128(2);
fn gap(chain: Uuid, first: u64, last: u64) -> Gap {
    Gap { chain, first, last }
}

const HOLD: Duration = Duration::from_secs(60);

pub(super) async fn how_far_a_way_out_has_come_outlives_the_process_and_never_goes_back(place: &Place) {
    let (first, second) = (Uuid::from_u128(11), Uuid::from_u128(12));
    {
        let shipments = place.open().await.shipments;
        assert!(shipments.claim("siem", ONE, HOLD).await.expect("an answer"));
        assert_eq!(shipments.delivered("siem").await.expect("an answer"), []);
        assert!(
            shipments
                .deliver("siem", ONE, &[(first, 7), (second, 3)], &[gap(first, 2, 4), gap(second, 1, 1)])
                .await
                .expect("noted")
        );
        assert!(
            shipments.deliver("siem", ONE, &[(first, 5)], &[gap(first, 2, 4), gap(first, 6, 6)]).await.expect("noted")
        );
        assert!(shipments.claim("other", ONE, HOLD).await.expect("an answer"));
        assert!(shipments.deliver("other", ONE, &[(first, u64::MAX >> 1)], &[gap(first, 9, 9)]).await.expect("noted"));
        assert!(shipments.deliver("other", ONE, &[], &[gap(first, 9, 9)]).await.expect("nothing to note"));
        shipments.release("siem", ONE).await.expect("released");
    }
    let shipments = place.open().await.shipments;
    let mut delivered = shipments.delivered("siem").await.expect("an answer");
    delivered.sort_unstable();
    assert_eq!(delivered, [(first, 7), (second, 3)]);
    assert_eq!(shipments.delivered("other").await.expect("an answer"), [(first, u64::MAX >> 1)]);
    assert_eq!(shipments.gaps("siem").await.expect("an answer"), [gap(first, 2, 4), gap(first, 6, 6)]);
    assert_eq!(shipments.gaps("other").await.expect("an answer"), [gap(first, 9, 9)]);
    shipments.forget("siem", first).await.expect("forgotten");
    assert_eq!(shipments.delivered("siem").await.expect("an answer"), [(second, 3)]);
    assert_eq!(shipments.gaps("siem").await.expect("an answer"), []);
    assert_eq!(shipments.gaps("other").await.expect("an answer").len(), 1);
    assert_eq!(shipments.delivered("other").await.expect("an answer").len(), 1);
    assert!(shipments.claim("siem", TWO, HOLD).await.expect("an answer"), "it was released");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_replicas_on_postgresql_one_has_the_claim_of_a_way_out_until_it_ends() {
    with_database(async |database| {
        let place = Place(database.url());
        let (here, there) = (place.open().await.shipments, place.open().await.shipments);
        let chain = Uuid::from_u128(11);
        assert!(here.claim("siem", ONE, HOLD).await.expect("an answer"));
        assert!(here.claim("siem", ONE, HOLD).await.expect("an answer"), "it may be kept");
        assert!(!there.claim("siem", TWO, HOLD).await.expect("an answer"));
        assert!(there.claim("other", TWO, HOLD).await.expect("an answer"));
        assert!(!there.deliver("siem", TWO, &[(chain, 9)], &[]).await.expect("an answer"), "without a claim");
        assert_eq!(there.delivered("siem").await.expect("an answer"), []);
        there.release("siem", TWO).await.expect("not its own");
        assert!(!there.claim("siem", TWO, HOLD).await.expect("an answer"));
        here.release("siem", ONE).await.expect("released");
        assert!(there.claim("siem", TWO, HOLD).await.expect("an answer"));
        assert!(!here.deliver("siem", ONE, &[(chain, 9)], &[]).await.expect("an answer"), "too late");
        // A replica that died.
        assert!(there.claim("siem", TWO, Duration::from_millis(1)).await.expect("an answer"));
        eventually("the end of a claim", async || here.claim("siem", ONE, HOLD).await.expect("an answer")).await;
        assert!(here.deliver("siem", ONE, &[(chain, 9)], &[]).await.expect("noted"));
        assert!(!there.deliver("siem", TWO, &[(chain, 10)], &[]).await.expect("an answer"));
        assert_eq!(there.delivered("siem").await.expect("an answer"), [(chain, 9)]);
    })
    .await;
}
