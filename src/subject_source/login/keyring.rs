//! The desktop's keyring: the Secret Service of the session's D-Bus, as GNOME, KDE and KeePassXC offer it.

use std::collections::HashMap;
use std::time::Duration;

use secret_service::{Collection, EncryptionType, Error, Item, SecretService};
use zeroize::Zeroizing;

use super::LoginError;

/// Whether one answers, without a question to the person.
pub(super) async fn answers() -> bool {
    let connected = async {
        let service = SecretService::connect(EncryptionType::Dh).await?;
        service.get_default_collection().await.map(|_collection| ())
    };
    matches!(tokio::time::timeout(PRESENCE_DEADLINE, connected).await, Ok(Ok(())))
}

/// # Errors
/// There is none, or the person does not unlock it.
pub(super) async fn unlock() -> Result<(), LoginError> {
    within_deadline(async {
        let service = SecretService::connect(EncryptionType::Dh).await?;
        unlocked(&service).await.map(|_collection| ())
    })
    .await
}

pub(super) async fn get() -> Result<Option<Zeroizing<Vec<u8>>>, LoginError> {
    within_deadline(async {
        let service = SecretService::connect(EncryptionType::Dh).await?;
        let collection = unlocked(&service).await?;
        match found(&collection).await?.first() {
            Some(item) => Ok(Some(Zeroizing::new(item.get_secret().await?))),
            None => Ok(None),
        }
    })
    .await
}

pub(super) async fn put(secret: &[u8]) -> Result<(), LoginError> {
    within_deadline(async {
        let service = SecretService::connect(EncryptionType::Dh).await?;
        let collection = unlocked(&service).await?;
        let item = collection.create_item("carnet login", attributes(), secret, true, "application/json").await?;
        item.ensure_unlocked().await
    })
    .await
}

pub(super) async fn delete() -> Result<(), LoginError> {
    within_deadline(async {
        let service = SecretService::connect(EncryptionType::Dh).await?;
        let collection = unlocked(&service).await?;
        for item in found(&collection).await? {
            item.delete().await?;
        }
        Ok(())
    })
    .await
}

/// May put a question to the person.
async fn unlocked<'a>(service: &'a SecretService<'a>) -> Result<Collection<'a>, Error> {
    let collection = service.get_default_collection().await?;
    if collection.is_locked().await? {
        collection.unlock().await?;
    }
    Ok(collection)
}

async fn found<'a>(collection: &'a Collection<'a>) -> Result<Vec<Item<'a>>, Error> {
    collection.search_items(attributes()).await
}

fn attributes() -> HashMap<&'static str, &'static str> {
    HashMap::from([("application", "carnet"), ("kind", "login")])
}

async fn within_deadline<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, LoginError> {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(done) => done.map_err(|error| LoginError::Keyring(error.to_string())),
        Err(_elapsed) => Err(LoginError::Keyring(format!("no answer within {}s", DEADLINE.as_secs()))),
    }
}

/// Long enough for a person to type the keyring's password.
const DEADLINE: Duration = Duration::from_secs(30);
const PRESENCE_DEADLINE: Duration = Duration::from_secs(3);
