//! What operators are shown of the directories beyond what a search finds.

use greenroom_protocol::search::FieldInfo;
use greenroom_protocol::wire::admin_master::{InstanceStatus, KindStatus, SeatStatus};
use greenroom_protocol::{InstanceId, KindName, Refusal, Seat, ServerName};

use crate::directory::{SeatRecord, SeatStage, Stage};
use crate::state::State;
use crate::users::Life;

impl State {
    /// The kinds of instances.
    pub fn kind_status(&self) -> Vec<KindStatus> {
        let status = |(name, fields): (&KindName, &[FieldInfo])| KindStatus {
            name: name.clone(),
            instances: self.directory.count(name) as u64,
            fields: fields.iter().map(|field| field.name.clone()).collect(),
        };
        self.directory.kinds().map(status).collect()
    }

    /// One instance with its seats.
    ///
    /// # Errors
    /// What became of an instance that is not there any more, or that there is none.
    pub fn instance_status(&self, id: InstanceId) -> Result<InstanceStatus, Refusal> {
        let at = self.directory.find(id).ok_or_else(|| self.departed.refusal(id))?;
        let instance = self.directory.get(at);
        let seat = |(seat, record): (Seat, SeatRecord)| {
            let expected = instance.expected().iter().find(|(of, _)| *of == seat);
            let mut status = SeatStatus {
                seat,
                state: text(record.stage).into(),
                user: expected.map(|(_, user)| user.clone()),
                name: "".into(),
                session_server: None,
            };
            if let Some(session) = record.holder().and_then(|holder| self.users.find(holder)) {
                let session = self.users.session(session);
                if let Life::Live { user } = session.life {
                    let user = self.users.user(user);
                    (status.user, status.name) = (Some(user.id.clone()), user.name.clone());
                }
                let server = session.binding;
                status.session_server =
                    server.map(|server| self.session_server_name(server).clone());
            }
            status
        };
        Ok(InstanceStatus {
            kind: self.directory.kind(at).clone(),
            incarnation: instance.incarnation,
            fields: self.fields_of(at),
            seats: instance.seats().map(seat).collect(),
            measures: None,
        })
    }

    /// The game server that runs an instance now.
    pub fn runs_on(&self, id: InstanceId) -> Option<&ServerName> {
        let instance = self.directory.get(self.directory.find(id)?);
        let is_there = matches!(instance.stage, Stage::Running | Stage::Closing);
        is_there.then(|| &self.game_servers.get(instance.server).peer.name)
    }
}

fn text(stage: SeatStage) -> &'static str {
    match stage {
        SeatStage::Free => "free",
        SeatStage::Expected => "expected",
        SeatStage::Reserved => "reserved",
        SeatStage::Taken => "taken",
        SeatStage::Away => "away",
    }
}
