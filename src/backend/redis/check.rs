//! What would go wrong later.

use super::RedisBackend;
use crate::backend::Finding;
use crate::error::Result;

impl RedisBackend {
    pub(super) async fn findings(&self) -> Result<Vec<Finding>> {
        self.work.connection().await?;
        Ok(Vec::new())
    }
}
