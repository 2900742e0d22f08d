//! Ten thousand watches that have nothing to say: what they cost the broker.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use carnet::proto;
use carnet::proto::leases_client::LeasesClient;
use futures_util::future::try_join_all;
use tokio::time::sleep;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::broker::{self, Clouds, Place};
use crate::leases::open_request;
use crate::table::{Row, aside, row};

pub async fn run() -> Result<Vec<Row>> {
    let clouds = Clouds::start().await?;
    let place = Place::make(&clouds)?;
    let (broker, _took) = place.start(None).await?;
    let request = open_request(&broker::request(clouds.subject_token(), "run-1"));
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(LeasesClient::connect(format!("http://{}", place.grpc)).await?);
    }
    let open = async |mut client: LeasesClient<Channel>| {
        let mut tokens = Vec::with_capacity(STREAMS);
        for _ in 0..STREAMS {
            tokens.push(client.open_lease(request.clone()).await?.into_inner().lease_token);
        }
        Ok::<_, anyhow::Error>(tokens)
    };
    let tokens = try_join_all(connections.iter().cloned().map(open)).await?;
    sleep(SETTLING).await;
    let before = broker.resident()?;
    let watch = async |(client, tokens): (&LeasesClient<Channel>, &Vec<String>)| {
        let watch = |lease_token: &String| {
            let (mut client, lease_token) = (client.clone(), lease_token.clone());
            async move {
                let request = proto::WatchCredentialsRequest { lease_token, ..Default::default() };
                let mut watch = client.watch_credentials(request).await?.into_inner();
                let first = watch.message().await?.context("a first message")?;
                ensure!(first.credentials.len() == 1, "no credential");
                Ok(watch)
            }
        };
        try_join_all(tokens.iter().map(watch)).await
    };
    let watches: Vec<Vec<Streaming<_>>> = try_join_all(connections.iter().zip(&tokens).map(watch)).await?;
    sleep(SETTLING).await;
    let grown = broker.resident()?.saturating_sub(before);
    let busy = broker.busy()?;
    sleep(IDLE).await;
    let busy = (broker.busy()? - busy).as_secs_f64() / IDLE.as_secs_f64();
    let watches: usize = watches.iter().map(Vec::len).sum();
    Ok(vec![
        row("resident bytes per idle watch", format!("{:.0}", grown as f64 / watches as f64), "<= 20000"),
        aside("watches, each of a lease of its own", watches.to_string()),
        aside("processor time of all of them", format!("{:.1}% of a core", busy * 100.0)),
    ])
}

const CONNECTIONS: usize = 40;
const STREAMS: usize = 250;

const SETTLING: Duration = Duration::from_secs(3);
const IDLE: Duration = Duration::from_secs(30);
