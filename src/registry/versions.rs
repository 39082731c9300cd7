//! Objects in the version of a row: between what is stored and what is served.

use crate::conversion::Conversion;
use crate::custom::values;
use crate::registry::Registry;
use crate::resource::ResourceInfo;
use crate::stored::Stored;
use edge_api::{Object, Status};
use serde_json::Value;
use std::borrow::Cow;

impl Registry {
    /// Stored objects in the row's version. Most are as they are stored, and cost nothing.
    ///
    /// # Errors
    /// What a conversion webhook says, or that it cannot be asked.
    pub async fn in_version<'s>(&self, info: &ResourceInfo, items: &'s [Stored]) -> Result<Cow<'s, [Stored]>, Status> {
        let api_version = info.api_version();
        if info.conversion.is_none() || items.iter().all(|item| item.is_of(&api_version)) {
            return Ok(Cow::Borrowed(items));
        }
        let mut out = Vec::with_capacity(items.len());
        // a webhook is asked once for all
        let mut asked = Vec::new();
        for item in items {
            let mut object = item.object()?;
            match &info.conversion {
                Some(Conversion::Webhook { .. }) if !item.name().is_empty() && object.api_version() != api_version => {
                    asked.push((out.len(), object.into_value()));
                    out.push(item.clone());
                    continue;
                }
                Some(Conversion::BuiltIn(functions)) if object.api_version() != api_version => {
                    (functions.from_stored)(&mut object);
                }
                _ => object.set_gvk(&info.gvk()),
            }
            if info.custom.is_some() && !item.name().is_empty() {
                values::normalize(info, &mut object);
            }
            out.push(item.with_bytes(object.to_json().into()));
        }
        let (places, objects): (Vec<usize>, Vec<Value>) = asked.into_iter().unzip();
        for (place, mut object) in places.into_iter().zip(self.ask(info, &api_version, objects).await?) {
            values::normalize(info, &mut object);
            out[place] = out[place].with_bytes(object.to_json().into());
        }
        Ok(Cow::Owned(out))
    }

    /// One object in the row's version.
    ///
    /// # Errors
    /// The same.
    pub(crate) async fn served(&self, info: &ResourceInfo, mut object: Object) -> Result<Object, Status> {
        let api_version = info.api_version();
        if object.api_version() == api_version {
            return Ok(object);
        }
        match &info.conversion {
            None => Ok(object),
            Some(Conversion::BuiltIn(functions)) => {
                (functions.from_stored)(&mut object);
                Ok(object)
            }
            Some(Conversion::Renamed { .. }) => {
                object.set_gvk(&info.gvk());
                values::normalize(info, &mut object);
                Ok(object)
            }
            Some(Conversion::Webhook { .. }) => {
                let mut object = self.ask_one(info, &api_version, object).await?;
                values::normalize(info, &mut object);
                Ok(object)
            }
        }
    }

    /// One object of the row's version in the stored one.
    ///
    /// # Errors
    /// The same.
    pub(crate) async fn to_stored(&self, info: &ResourceInfo, mut object: Object) -> Result<Object, Status> {
        match &info.conversion {
            None => Ok(object),
            Some(Conversion::BuiltIn(functions)) => {
                (functions.to_stored)(&mut object);
                Ok(object)
            }
            Some(Conversion::Renamed { stored_api_version }) => {
                object.fields_mut().insert("apiVersion".into(), stored_api_version.as_str().into());
                Ok(object)
            }
            Some(Conversion::Webhook { stored_api_version, .. }) if object.api_version() == stored_api_version => {
                Ok(object)
            }
            Some(Conversion::Webhook { stored_api_version, .. }) => {
                self.ask_one(info, stored_api_version, object).await
            }
        }
    }

    /// An object of one row's version in that of another row of the same resource; `from` is `None` for a stored version that is not
    /// served.
    ///
    /// # Errors
    /// The same.
    pub async fn convert(
        &self,
        from: Option<&ResourceInfo>,
        to: &ResourceInfo,
        object: Object,
    ) -> Result<Object, Status> {
        let stored = match from {
            Some(from) => self.to_stored(from, object).await?,
            None => object,
        };
        self.served(to, stored).await
    }

    async fn ask_one(&self, info: &ResourceInfo, desired: &str, object: Object) -> Result<Object, Status> {
        let mut objects = self.ask(info, desired, vec![object.into_value()]).await?;
        objects.pop().ok_or_else(|| Status::internal("a conversion webhook gave no object back"))
    }

    /// Asks the webhook of a row.
    async fn ask(&self, info: &ResourceInfo, desired: &str, objects: Vec<Value>) -> Result<Vec<Object>, Status> {
        let (Some(Conversion::Webhook { webhook, .. }), false) = (&info.conversion, objects.is_empty()) else {
            return Ok(Vec::new());
        };
        let converter = self.converter.get().ok_or_else(|| Status::internal("nobody can ask conversion webhooks"))?;
        let count = objects.len();
        let converted = converter.convert(webhook, desired, objects).await?;
        if converted.len() != count {
            return Err(Status::internal("a conversion webhook gave another number of objects back"));
        }
        let object =
            |value| Object::from_value(value).map_err(|_| Status::internal("a conversion webhook gave no object back"));
        converted.into_iter().map(object).collect()
    }
}
