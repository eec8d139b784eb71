// Made by `make types` from supabase/schemas/. Do not edit.
export type Json = string | number | boolean | null | { [key: string]: Json | undefined } | Json[];

export type Database = {
  public: {
    Tables: {
      account_days: {
        Row: {
          account_id: string;
          day: string;
          ends_at: string;
          first_at: string;
          first_balance: number;
          first_equity: number;
          last_at: string;
          last_balance: number;
          last_equity: number;
          max_balance: number;
          max_equity: number;
          min_balance: number;
          min_equity: number;
          time_zone: string;
          user_id: string;
        };
        ComputedFields: never;
        Insert: {
          account_id: string;
          day: string;
          ends_at: string;
          first_at: string;
          first_balance: number;
          first_equity: number;
          last_at: string;
          last_balance: number;
          last_equity: number;
          max_balance: number;
          max_equity: number;
          min_balance: number;
          min_equity: number;
          time_zone: string;
          user_id: string;
        };
        Update: {
          account_id?: string;
          day?: string;
          ends_at?: string;
          first_at?: string;
          first_balance?: number;
          first_equity?: number;
          last_at?: string;
          last_balance?: number;
          last_equity?: number;
          max_balance?: number;
          max_equity?: number;
          min_balance?: number;
          min_equity?: number;
          time_zone?: string;
          user_id?: string;
        };
        Relationships: [
          {
            foreignKeyName: "account_days_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: false;
            referencedRelation: "account_status";
            referencedColumns: ["account_id"];
          },
          {
            foreignKeyName: "account_days_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: false;
            referencedRelation: "trading_accounts";
            referencedColumns: ["id"];
          },
        ];
      };
      account_snapshots: {
        Row: {
          account_id: string;
          at: string;
          balance: number;
          equity: number;
          free_margin: number | null;
          margin: number | null;
        };
        ComputedFields: never;
        Insert: {
          account_id: string;
          at: string;
          balance: number;
          equity: number;
          free_margin?: number | null;
          margin?: number | null;
        };
        Update: {
          account_id?: string;
          at?: string;
          balance?: number;
          equity?: number;
          free_margin?: number | null;
          margin?: number | null;
        };
        Relationships: [
          {
            foreignKeyName: "account_snapshots_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: false;
            referencedRelation: "account_status";
            referencedColumns: ["account_id"];
          },
          {
            foreignKeyName: "account_snapshots_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: false;
            referencedRelation: "trading_accounts";
            referencedColumns: ["id"];
          },
        ];
      };
      account_symbols: {
        Row: {
          account_id: string;
          allow_negative: boolean;
          ask: number | null;
          bid: number | null;
          contract_size: number;
          digits: number;
          freeze_level_points: number;
          lots_max: number;
          lots_min: number;
          lots_step: number;
          margin_currency: string;
          name: string;
          profit_currency: string;
          quoted_at: string | null;
          stops_level_points: number;
          tick_size: number;
          trade_mode: string;
          updated_at: string;
        };
        ComputedFields: never;
        Insert: {
          account_id: string;
          allow_negative?: boolean;
          ask?: number | null;
          bid?: number | null;
          contract_size: number;
          digits: number;
          freeze_level_points?: number;
          lots_max: number;
          lots_min: number;
          lots_step: number;
          margin_currency: string;
          name: string;
          profit_currency: string;
          quoted_at?: string | null;
          stops_level_points?: number;
          tick_size: number;
          trade_mode?: string;
          updated_at?: string;
        };
        Update: {
          account_id?: string;
          allow_negative?: boolean;
          ask?: number | null;
          bid?: number | null;
          contract_size?: number;
          digits?: number;
          freeze_level_points?: number;
          lots_max?: number;
          lots_min?: number;
          lots_step?: number;
          margin_currency?: string;
          name?: string;
          profit_currency?: string;
          quoted_at?: string | null;
          stops_level_points?: number;
          tick_size?: number;
          trade_mode?: string;
          updated_at?: string;
        };
        Relationships: [
          {
            foreignKeyName: "account_symbols_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: false;
            referencedRelation: "account_status";
            referencedColumns: ["account_id"];
          },
          {
            foreignKeyName: "account_symbols_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: false;
            referencedRelation: "trading_accounts";
            referencedColumns: ["id"];
          },
        ];
      };
      account_vps_assignments: {
        Row: {
          account_id: string;
          assigned_at: string;
          begins_at: string;
          epoch: number;
          previous_vps_id: string | null;
          vps_id: string;
        };
        ComputedFields: never;
        Insert: {
          account_id: string;
          assigned_at?: string;
          begins_at?: string;
          epoch?: number;
          previous_vps_id?: string | null;
          vps_id: string;
        };
        Update: {
          account_id?: string;
          assigned_at?: string;
          begins_at?: string;
          epoch?: number;
          previous_vps_id?: string | null;
          vps_id?: string;
        };
        Relationships: [
          {
            foreignKeyName: "account_vps_assignments_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: true;
            referencedRelation: "account_status";
            referencedColumns: ["account_id"];
          },
          {
            foreignKeyName: "account_vps_assignments_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: true;
            referencedRelation: "trading_accounts";
            referencedColumns: ["id"];
          },
          {
            foreignKeyName: "account_vps_assignments_previous_vps_id_fkey";
            columns: ["previous_vps_id"];
            isOneToOne: false;
            referencedRelation: "vps_instances";
            referencedColumns: ["id"];
          },
          {
            foreignKeyName: "account_vps_assignments_vps_id_fkey";
            columns: ["vps_id"];
            isOneToOne: false;
            referencedRelation: "vps_instances";
            referencedColumns: ["id"];
          },
        ];
      };
      alerts: {
        Row: {
          account_id: string | null;
          created_at: string;
          detail: NonNullable<Json>;
          id: number;
          kind: string;
          message: string;
          reason: string;
          seen_at: string | null;
          severity: string;
          times: number;
          updated_at: string;
          user_id: string | null;
          vps_id: string | null;
        };
        ComputedFields: never;
        Insert: {
          account_id?: string | null;
          created_at?: string;
          detail?: NonNullable<Json>;
          id?: never;
          kind: string;
          message: string;
          reason: string;
          seen_at?: string | null;
          severity?: string;
          times?: number;
          updated_at?: string;
          user_id?: string | null;
          vps_id?: string | null;
        };
        Update: {
          account_id?: string | null;
          created_at?: string;
          detail?: NonNullable<Json>;
          id?: never;
          kind?: string;
          message?: string;
          reason?: string;
          seen_at?: string | null;
          severity?: string;
          times?: number;
          updated_at?: string;
          user_id?: string | null;
          vps_id?: string | null;
        };
        Relationships: [
          {
            foreignKeyName: "alerts_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: false;
            referencedRelation: "account_status";
            referencedColumns: ["account_id"];
          },
          {
            foreignKeyName: "alerts_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: false;
            referencedRelation: "trading_accounts";
            referencedColumns: ["id"];
          },
          {
            foreignKeyName: "alerts_vps_id_fkey";
            columns: ["vps_id"];
            isOneToOne: false;
            referencedRelation: "vps_instances";
            referencedColumns: ["id"];
          },
        ];
      };
      audit_log: {
        Row: {
          action: string;
          actor: string;
          actor_id: string | null;
          at: string;
          details: NonNullable<Json>;
          entity: string;
          entity_id: string;
          id: number;
          user_id: string | null;
        };
        ComputedFields: never;
        Insert: {
          action: string;
          actor: string;
          actor_id?: string | null;
          at?: string;
          details?: NonNullable<Json>;
          entity: string;
          entity_id: string;
          id?: never;
          user_id?: string | null;
        };
        Update: {
          action?: string;
          actor?: string;
          actor_id?: string | null;
          at?: string;
          details?: NonNullable<Json>;
          entity?: string;
          entity_id?: string;
          id?: never;
          user_id?: string | null;
        };
        Relationships: [];
      };
      balance_operations: {
        Row: {
          account_id: string;
          amount: number;
          counted: boolean;
          created_at: string;
          kind: string;
          made_at: string;
          number: string;
          user_id: string;
        };
        ComputedFields: never;
        Insert: {
          account_id: string;
          amount: number;
          counted: boolean;
          created_at?: string;
          kind: string;
          made_at: string;
          number: string;
          user_id: string;
        };
        Update: {
          account_id?: string;
          amount?: number;
          counted?: boolean;
          created_at?: string;
          kind?: string;
          made_at?: string;
          number?: string;
          user_id?: string;
        };
        Relationships: [
          {
            foreignKeyName: "balance_operations_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: false;
            referencedRelation: "account_status";
            referencedColumns: ["account_id"];
          },
          {
            foreignKeyName: "balance_operations_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: false;
            referencedRelation: "trading_accounts";
            referencedColumns: ["id"];
          },
        ];
      };
      broker_servers: {
        Row: {
          address: string | null;
          created_at: string;
          platform: string;
          server: string;
          server_key: string;
          title: string;
          updated_at: string;
        };
        ComputedFields: never;
        Insert: {
          address?: string | null;
          created_at?: string;
          platform: string;
          server: string;
          server_key?: never;
          title: string;
          updated_at?: string;
        };
        Update: {
          address?: string | null;
          created_at?: string;
          platform?: string;
          server?: string;
          server_key?: never;
          title?: string;
          updated_at?: string;
        };
        Relationships: [];
      };
      connection_health_logs: {
        Row: {
          account_id: string | null;
          accounts: number | null;
          at: string;
          clock_offset_ms: number | null;
          cpu_percent: number | null;
          disk_percent: number | null;
          heartbeat_age_ms: number | null;
          id: number;
          kind: string;
          memory_percent: number | null;
          previous_status: string | null;
          reason: string | null;
          rss_mb: number | null;
          rtt_ms: number | null;
          status: string;
          vps_id: string | null;
        };
        ComputedFields: never;
        Insert: {
          account_id?: string | null;
          accounts?: number | null;
          at?: string;
          clock_offset_ms?: number | null;
          cpu_percent?: number | null;
          disk_percent?: number | null;
          heartbeat_age_ms?: number | null;
          id?: never;
          kind: string;
          memory_percent?: number | null;
          previous_status?: string | null;
          reason?: string | null;
          rss_mb?: number | null;
          rtt_ms?: number | null;
          status: string;
          vps_id?: string | null;
        };
        Update: {
          account_id?: string | null;
          accounts?: number | null;
          at?: string;
          clock_offset_ms?: number | null;
          cpu_percent?: number | null;
          disk_percent?: number | null;
          heartbeat_age_ms?: number | null;
          id?: never;
          kind?: string;
          memory_percent?: number | null;
          previous_status?: string | null;
          reason?: string | null;
          rss_mb?: number | null;
          rtt_ms?: number | null;
          status?: string;
          vps_id?: string | null;
        };
        Relationships: [
          {
            foreignKeyName: "connection_health_logs_vps_id_fkey";
            columns: ["vps_id"];
            isOneToOne: false;
            referencedRelation: "vps_instances";
            referencedColumns: ["id"];
          },
          {
            foreignKeyName: "health_is_of_an_account";
            columns: ["account_id"];
            isOneToOne: false;
            referencedRelation: "account_status";
            referencedColumns: ["account_id"];
          },
          {
            foreignKeyName: "health_is_of_an_account";
            columns: ["account_id"];
            isOneToOne: false;
            referencedRelation: "trading_accounts";
            referencedColumns: ["id"];
          },
        ];
      };
      copiers: {
        Row: {
          comment: string;
          comment_except: string[];
          comment_only: string[];
          contract_alignment: boolean;
          copy_existing: string;
          copy_existing_points: number | null;
          copy_pending: boolean;
          created_at: string;
          delay_max_ms: number;
          delay_min_ms: number;
          early_fill_policy: string;
          existing_until: string | null;
          follower_account_id: string;
          id: string;
          lots_jitter_percent: number;
          magic_except: string[];
          magic_only: string[];
          master_account_id: string;
          max_age_ms: number;
          max_leverage: number | null;
          max_leverage_policy: string;
          max_lots: number | null;
          max_open_lots: number | null;
          max_open_positions: number | null;
          max_policy: string;
          max_risk_coefficient: number;
          max_risk_percent: number | null;
          max_sl_points: number | null;
          max_slippage_points: number | null;
          max_trades_per_day: number | null;
          min_equity: number | null;
          min_policy: string;
          mode: string;
          name: string;
          no_money_policy: string;
          open_from: string | null;
          open_until: string | null;
          pending_grace_ms: number;
          removal: string | null;
          removed_at: string | null;
          retry_window_s: number;
          reverse: boolean;
          sanity_factor: number | null;
          sides: string;
          sizing_mode: string;
          sizing_value: number;
          sl_mode: string;
          sl_points: number | null;
          started_at: string;
          symbols_except: string[];
          symbols_only: string[];
          time_zone: string;
          tp_mode: string;
          tp_points: number | null;
          updated_at: string;
          user_id: string;
          weekdays: number[];
        };
        ComputedFields: never;
        Insert: {
          comment?: string;
          comment_except?: string[];
          comment_only?: string[];
          contract_alignment?: boolean;
          copy_existing?: string;
          copy_existing_points?: number | null;
          copy_pending?: boolean;
          created_at?: string;
          delay_max_ms?: number;
          delay_min_ms?: number;
          early_fill_policy?: string;
          existing_until?: string | null;
          follower_account_id: string;
          id?: string;
          lots_jitter_percent?: number;
          magic_except?: string[];
          magic_only?: string[];
          master_account_id: string;
          max_age_ms?: number;
          max_leverage?: number | null;
          max_leverage_policy?: string;
          max_lots?: number | null;
          max_open_lots?: number | null;
          max_open_positions?: number | null;
          max_policy?: string;
          max_risk_coefficient?: number;
          max_risk_percent?: number | null;
          max_sl_points?: number | null;
          max_slippage_points?: number | null;
          max_trades_per_day?: number | null;
          min_equity?: number | null;
          min_policy?: string;
          mode?: string;
          name?: string;
          no_money_policy?: string;
          open_from?: string | null;
          open_until?: string | null;
          pending_grace_ms?: number;
          removal?: string | null;
          removed_at?: string | null;
          retry_window_s?: number;
          reverse?: boolean;
          sanity_factor?: number | null;
          sides?: string;
          sizing_mode?: string;
          sizing_value?: number;
          sl_mode?: string;
          sl_points?: number | null;
          started_at?: string;
          symbols_except?: string[];
          symbols_only?: string[];
          time_zone?: string;
          tp_mode?: string;
          tp_points?: number | null;
          updated_at?: string;
          user_id: string;
          weekdays?: number[];
        };
        Update: {
          comment?: string;
          comment_except?: string[];
          comment_only?: string[];
          contract_alignment?: boolean;
          copy_existing?: string;
          copy_existing_points?: number | null;
          copy_pending?: boolean;
          created_at?: string;
          delay_max_ms?: number;
          delay_min_ms?: number;
          early_fill_policy?: string;
          existing_until?: string | null;
          follower_account_id?: string;
          id?: string;
          lots_jitter_percent?: number;
          magic_except?: string[];
          magic_only?: string[];
          master_account_id?: string;
          max_age_ms?: number;
          max_leverage?: number | null;
          max_leverage_policy?: string;
          max_lots?: number | null;
          max_open_lots?: number | null;
          max_open_positions?: number | null;
          max_policy?: string;
          max_risk_coefficient?: number;
          max_risk_percent?: number | null;
          max_sl_points?: number | null;
          max_slippage_points?: number | null;
          max_trades_per_day?: number | null;
          min_equity?: number | null;
          min_policy?: string;
          mode?: string;
          name?: string;
          no_money_policy?: string;
          open_from?: string | null;
          open_until?: string | null;
          pending_grace_ms?: number;
          removal?: string | null;
          removed_at?: string | null;
          retry_window_s?: number;
          reverse?: boolean;
          sanity_factor?: number | null;
          sides?: string;
          sizing_mode?: string;
          sizing_value?: number;
          sl_mode?: string;
          sl_points?: number | null;
          started_at?: string;
          symbols_except?: string[];
          symbols_only?: string[];
          time_zone?: string;
          tp_mode?: string;
          tp_points?: number | null;
          updated_at?: string;
          user_id?: string;
          weekdays?: number[];
        };
        Relationships: [
          {
            foreignKeyName: "copiers_follower_account_id_fkey";
            columns: ["follower_account_id"];
            isOneToOne: false;
            referencedRelation: "account_status";
            referencedColumns: ["account_id"];
          },
          {
            foreignKeyName: "copiers_follower_account_id_fkey";
            columns: ["follower_account_id"];
            isOneToOne: false;
            referencedRelation: "trading_accounts";
            referencedColumns: ["id"];
          },
          {
            foreignKeyName: "copiers_master_account_id_fkey";
            columns: ["master_account_id"];
            isOneToOne: false;
            referencedRelation: "account_status";
            referencedColumns: ["account_id"];
          },
          {
            foreignKeyName: "copiers_master_account_id_fkey";
            columns: ["master_account_id"];
            isOneToOne: false;
            referencedRelation: "trading_accounts";
            referencedColumns: ["id"];
          },
        ];
      };
      copy_outcomes: {
        Row: {
          copier_id: string;
          decided_at: string;
          detail: string | null;
          event_id: number;
          execution_id: number | null;
          link_id: number | null;
          reason: string | null;
          user_id: string;
        };
        ComputedFields: never;
        Insert: {
          copier_id: string;
          decided_at?: string;
          detail?: string | null;
          event_id: number;
          execution_id?: number | null;
          link_id?: number | null;
          reason?: string | null;
          user_id: string;
        };
        Update: {
          copier_id?: string;
          decided_at?: string;
          detail?: string | null;
          event_id?: number;
          execution_id?: number | null;
          link_id?: number | null;
          reason?: string | null;
          user_id?: string;
        };
        Relationships: [];
      };
      crypto_currencies: {
        Row: {
          currency: string;
          word: string | null;
        };
        ComputedFields: never;
        Insert: {
          currency: string;
          word?: string | null;
        };
        Update: {
          currency?: string;
          word?: string | null;
        };
        Relationships: [];
      };
      currency_units: {
        Row: {
          amount: number;
          assumed: boolean;
          counts_as: string;
          currency: string;
        };
        ComputedFields: never;
        Insert: {
          amount: number;
          assumed?: boolean;
          counts_as: string;
          currency: string;
        };
        Update: {
          amount?: number;
          assumed?: boolean;
          counts_as?: string;
          currency?: string;
        };
        Relationships: [];
      };
      enrollment_tokens: {
        Row: {
          created_at: string;
          created_by: string | null;
          expires_at: string;
          id: string;
          name: string | null;
          token_hash: string;
          used_at: string | null;
          vps_id: string | null;
        };
        ComputedFields: never;
        Insert: {
          created_at?: string;
          created_by?: string | null;
          expires_at: string;
          id?: string;
          name?: string | null;
          token_hash: string;
          used_at?: string | null;
          vps_id?: string | null;
        };
        Update: {
          created_at?: string;
          created_by?: string | null;
          expires_at?: string;
          id?: string;
          name?: string | null;
          token_hash?: string;
          used_at?: string | null;
          vps_id?: string | null;
        };
        Relationships: [
          {
            foreignKeyName: "enrollment_tokens_vps_id_fkey";
            columns: ["vps_id"];
            isOneToOne: false;
            referencedRelation: "vps_instances";
            referencedColumns: ["id"];
          },
        ];
      };
      flat_times: {
        Row: {
          account_id: string;
          close_manual: boolean;
          closed_for: string | null;
          created_at: string;
          due_at: string;
          flat_at: string;
          time_zone: string;
          until_at: string;
          until_time_zone: string;
          until_weekday: number;
          updated_at: string;
          user_id: string;
          warned_for: string | null;
          weekday: number;
        };
        ComputedFields: never;
        Insert: {
          account_id: string;
          close_manual?: boolean;
          closed_for?: string | null;
          created_at?: string;
          due_at: string;
          flat_at: string;
          time_zone: string;
          until_at?: string;
          until_time_zone?: string;
          until_weekday?: number;
          updated_at?: string;
          user_id: string;
          warned_for?: string | null;
          weekday: number;
        };
        Update: {
          account_id?: string;
          close_manual?: boolean;
          closed_for?: string | null;
          created_at?: string;
          due_at?: string;
          flat_at?: string;
          time_zone?: string;
          until_at?: string;
          until_time_zone?: string;
          until_weekday?: number;
          updated_at?: string;
          user_id?: string;
          warned_for?: string | null;
          weekday?: number;
        };
        Relationships: [
          {
            foreignKeyName: "flat_times_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: true;
            referencedRelation: "account_status";
            referencedColumns: ["account_id"];
          },
          {
            foreignKeyName: "flat_times_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: true;
            referencedRelation: "trading_accounts";
            referencedColumns: ["id"];
          },
        ];
      };
      operators: {
        Row: {
          granted_at: string;
          user_id: string;
        };
        ComputedFields: never;
        Insert: {
          granted_at?: string;
          user_id: string;
        };
        Update: {
          granted_at?: string;
          user_id?: string;
        };
        Relationships: [];
      };
      position_links: {
        Row: {
          asked_expires_at: string | null;
          asked_price: number | null;
          asked_sl: number | null;
          asked_tp: number | null;
          asked_unknown: boolean;
          base_lots: number | null;
          base_master_lots: number | null;
          close_failures: number;
          copier_id: string;
          created_at: string;
          ended_at: string | null;
          event_id: number | null;
          follower_account_id: string;
          generation: number;
          id: number;
          levels_due_at: string | null;
          master_account_id: string;
          master_kind: string;
          master_side: string;
          master_ticket: string;
          modify_failures: number;
          order_due_at: string | null;
          reason: string | null;
          replan_at: string | null;
          rest_lots: number | null;
          resync_lots: number | null;
          seen_master_lots: number;
          side: string | null;
          sized_lots: number | null;
          sized_master_lots: number | null;
          state: string;
          stopped_out: boolean;
          symbol: string | null;
          user_id: string;
          wanted_lots: number | null;
          wanted_until: string | null;
          warnings: string[];
        };
        ComputedFields: never;
        Insert: {
          asked_expires_at?: string | null;
          asked_price?: number | null;
          asked_sl?: number | null;
          asked_tp?: number | null;
          asked_unknown?: boolean;
          base_lots?: number | null;
          base_master_lots?: number | null;
          close_failures?: number;
          copier_id: string;
          created_at?: string;
          ended_at?: string | null;
          event_id?: number | null;
          follower_account_id: string;
          generation?: number;
          id?: never;
          levels_due_at?: string | null;
          master_account_id: string;
          master_kind?: string;
          master_side: string;
          master_ticket: string;
          modify_failures?: number;
          order_due_at?: string | null;
          reason?: string | null;
          replan_at?: string | null;
          rest_lots?: number | null;
          resync_lots?: number | null;
          seen_master_lots: number;
          side?: string | null;
          sized_lots?: number | null;
          sized_master_lots?: number | null;
          state: string;
          stopped_out?: boolean;
          symbol?: string | null;
          user_id: string;
          wanted_lots?: number | null;
          wanted_until?: string | null;
          warnings?: string[];
        };
        Update: {
          asked_expires_at?: string | null;
          asked_price?: number | null;
          asked_sl?: number | null;
          asked_tp?: number | null;
          asked_unknown?: boolean;
          base_lots?: number | null;
          base_master_lots?: number | null;
          close_failures?: number;
          copier_id?: string;
          created_at?: string;
          ended_at?: string | null;
          event_id?: number | null;
          follower_account_id?: string;
          generation?: number;
          id?: never;
          levels_due_at?: string | null;
          master_account_id?: string;
          master_kind?: string;
          master_side?: string;
          master_ticket?: string;
          modify_failures?: number;
          order_due_at?: string | null;
          reason?: string | null;
          replan_at?: string | null;
          rest_lots?: number | null;
          resync_lots?: number | null;
          seen_master_lots?: number;
          side?: string | null;
          sized_lots?: number | null;
          sized_master_lots?: number | null;
          state?: string;
          stopped_out?: boolean;
          symbol?: string | null;
          user_id?: string;
          wanted_lots?: number | null;
          wanted_until?: string | null;
          warnings?: string[];
        };
        Relationships: [
          {
            foreignKeyName: "position_links_copier_id_fkey";
            columns: ["copier_id"];
            isOneToOne: false;
            referencedRelation: "copiers";
            referencedColumns: ["id"];
          },
          {
            foreignKeyName: "position_links_copier_id_fkey";
            columns: ["copier_id"];
            isOneToOne: false;
            referencedRelation: "unexplained_pairs";
            referencedColumns: ["copier_id"];
          },
        ];
      };
      positions: {
        Row: {
          absent_snapshots: number;
          account_id: string;
          changed_at: string;
          close_reason: string | null;
          closed_at: string | null;
          comment: string | null;
          detected_at: string;
          existing: boolean;
          expires_at: string | null;
          filled_at: string | null;
          first_seen_at: string;
          grown_lots: number | null;
          kind: string;
          last_event_id: number | null;
          lots: number;
          magic: string | null;
          opened_at: string | null;
          order_type: string | null;
          price: number;
          released: boolean;
          replaced_by: string | null;
          replaced_by_kind: string | null;
          seq: number;
          session: number;
          side: string;
          sl: number | null;
          symbol: string;
          tag: number | null;
          ticket: string;
          tp: number | null;
          unseen_at: string;
          user_id: string;
        };
        ComputedFields: never;
        Insert: {
          absent_snapshots?: number;
          account_id: string;
          changed_at: string;
          close_reason?: string | null;
          closed_at?: string | null;
          comment?: string | null;
          detected_at: string;
          existing?: boolean;
          expires_at?: string | null;
          filled_at?: string | null;
          first_seen_at: string;
          grown_lots?: number | null;
          kind: string;
          last_event_id?: number | null;
          lots: number;
          magic?: string | null;
          opened_at?: string | null;
          order_type?: string | null;
          price: number;
          released?: boolean;
          replaced_by?: string | null;
          replaced_by_kind?: string | null;
          seq: number;
          session: number;
          side: string;
          sl?: number | null;
          symbol: string;
          tag?: number | null;
          ticket: string;
          tp?: number | null;
          unseen_at: string;
          user_id: string;
        };
        Update: {
          absent_snapshots?: number;
          account_id?: string;
          changed_at?: string;
          close_reason?: string | null;
          closed_at?: string | null;
          comment?: string | null;
          detected_at?: string;
          existing?: boolean;
          expires_at?: string | null;
          filled_at?: string | null;
          first_seen_at?: string;
          grown_lots?: number | null;
          kind?: string;
          last_event_id?: number | null;
          lots?: number;
          magic?: string | null;
          opened_at?: string | null;
          order_type?: string | null;
          price?: number;
          released?: boolean;
          replaced_by?: string | null;
          replaced_by_kind?: string | null;
          seq?: number;
          session?: number;
          side?: string;
          sl?: number | null;
          symbol?: string;
          tag?: number | null;
          ticket?: string;
          tp?: number | null;
          unseen_at?: string;
          user_id?: string;
        };
        Relationships: [
          {
            foreignKeyName: "positions_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: false;
            referencedRelation: "account_status";
            referencedColumns: ["account_id"];
          },
          {
            foreignKeyName: "positions_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: false;
            referencedRelation: "trading_accounts";
            referencedColumns: ["id"];
          },
        ];
      };
      protection_looks: {
        Row: {
          account_id: string;
          at: string;
          created_at: string;
          equity: number;
          id: number;
          kind: string;
          margin: number | null;
          outcome: string;
          reached: number;
          rule_id: string;
          user_id: string;
        };
        ComputedFields: never;
        Insert: {
          account_id: string;
          at: string;
          created_at?: string;
          equity: number;
          id?: never;
          kind: string;
          margin?: number | null;
          outcome: string;
          reached: number;
          rule_id: string;
          user_id: string;
        };
        Update: {
          account_id?: string;
          at?: string;
          created_at?: string;
          equity?: number;
          id?: never;
          kind?: string;
          margin?: number | null;
          outcome?: string;
          reached?: number;
          rule_id?: string;
          user_id?: string;
        };
        Relationships: [
          {
            foreignKeyName: "protection_looks_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: false;
            referencedRelation: "account_status";
            referencedColumns: ["account_id"];
          },
          {
            foreignKeyName: "protection_looks_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: false;
            referencedRelation: "trading_accounts";
            referencedColumns: ["id"];
          },
        ];
      };
      protection_rules: {
        Row: {
          account_id: string;
          action: string;
          basis: string;
          breached_at: string | null;
          breached_equity: number | null;
          close_manual: boolean;
          confirm_ms: number;
          count_balance_operations: boolean;
          created_at: string;
          cushion_percent: number;
          day: string | null;
          day_begins: string;
          day_start_at: string | null;
          day_start_equity: number | null;
          enabled: boolean;
          high_water_mark: number | null;
          id: string;
          kind: string;
          locks_at: number | null;
          moves_with: string;
          of: string | null;
          threshold: number;
          time_zone: string;
          triggered_at: string | null;
          updated_at: string;
          user_id: string;
          warn_percent: number;
          warned_day: string | null;
          would_breach: string | null;
        };
        ComputedFields: never;
        Insert: {
          account_id: string;
          action?: string;
          basis?: string;
          breached_at?: string | null;
          breached_equity?: number | null;
          close_manual?: boolean;
          confirm_ms?: number;
          count_balance_operations?: boolean;
          created_at?: string;
          cushion_percent?: number;
          day?: string | null;
          day_begins?: string;
          day_start_at?: string | null;
          day_start_equity?: number | null;
          enabled?: boolean;
          high_water_mark?: number | null;
          id?: string;
          kind: string;
          locks_at?: number | null;
          moves_with?: string;
          of?: string | null;
          threshold: number;
          time_zone?: string;
          triggered_at?: string | null;
          updated_at?: string;
          user_id: string;
          warn_percent?: number;
          warned_day?: string | null;
          would_breach?: string | null;
        };
        Update: {
          account_id?: string;
          action?: string;
          basis?: string;
          breached_at?: string | null;
          breached_equity?: number | null;
          close_manual?: boolean;
          confirm_ms?: number;
          count_balance_operations?: boolean;
          created_at?: string;
          cushion_percent?: number;
          day?: string | null;
          day_begins?: string;
          day_start_at?: string | null;
          day_start_equity?: number | null;
          enabled?: boolean;
          high_water_mark?: number | null;
          id?: string;
          kind?: string;
          locks_at?: number | null;
          moves_with?: string;
          of?: string | null;
          threshold?: number;
          time_zone?: string;
          triggered_at?: string | null;
          updated_at?: string;
          user_id?: string;
          warn_percent?: number;
          warned_day?: string | null;
          would_breach?: string | null;
        };
        Relationships: [
          {
            foreignKeyName: "protection_rules_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: false;
            referencedRelation: "account_status";
            referencedColumns: ["account_id"];
          },
          {
            foreignKeyName: "protection_rules_account_id_fkey";
            columns: ["account_id"];
            isOneToOne: false;
            referencedRelation: "trading_accounts";
            referencedColumns: ["id"];
          },
        ];
      };
      quiet_windows: {
        Row: {
          begins_at: string;
          created_at: string;
          currencies: string[];
          ends_at: string;
          id: number;
          meanings: string[];
          name: string | null;
          span: unknown;
          symbols: string[];
          user_id: string | null;
        };
        ComputedFields: never;
        Insert: {
          begins_at: string;
          created_at?: string;
          currencies?: string[];
          ends_at: string;
          id?: never;
          meanings?: string[];
          name?: string | null;
          span: unknown;
          symbols?: string[];
          user_id?: string | null;
        };
        Update: {
          begins_at?: string;
          created_at?: string;
          currencies?: string[];
          ends_at?: string;
          id?: never;
          meanings?: string[];
          name?: string | null;
          span?: unknown;
          symbols?: string[];
          user_id?: string | null;
        };
        Relationships: [];
      };
      server_requests: {
        Row: {
          created_at: string;
          name: string;
          name_key: string;
          platform: string;
          user_id: string;
        };
        ComputedFields: never;
        Insert: {
          created_at?: string;
          name: string;
          name_key?: never;
          platform: string;
          user_id: string;
        };
        Update: {
          created_at?: string;
          name?: string;
          name_key?: never;
          platform?: string;
          user_id?: string;
        };
        Relationships: [];
      };
      symbol_aliases: {
        Row: {
          instrument: string;
          name: string;
        };
        ComputedFields: never;
        Insert: {
          instrument: string;
          name: string;
        };
        Update: {
          instrument?: string;
          name?: string;
        };
        Relationships: [];
      };
      symbol_mappings: {
        Row: {
          copier_id: string;
          created_at: string;
          follower_symbol: string;
          id: string;
          lots_factor: number;
          master_key: string;
          master_symbol: string;
          mode: string;
          user_id: string;
        };
        ComputedFields: never;
        Insert: {
          copier_id: string;
          created_at?: string;
          follower_symbol: string;
          id?: string;
          lots_factor?: number;
          master_key?: never;
          master_symbol: string;
          mode?: string;
          user_id: string;
        };
        Update: {
          copier_id?: string;
          created_at?: string;
          follower_symbol?: string;
          id?: string;
          lots_factor?: number;
          master_key?: never;
          master_symbol?: string;
          mode?: string;
          user_id?: string;
        };
        Relationships: [
          {
            foreignKeyName: "symbol_mappings_copier_id_fkey";
            columns: ["copier_id"];
            isOneToOne: false;
            referencedRelation: "copiers";
            referencedColumns: ["id"];
          },
          {
            foreignKeyName: "symbol_mappings_copier_id_fkey";
            columns: ["copier_id"];
            isOneToOne: false;
            referencedRelation: "unexplained_pairs";
            referencedColumns: ["copier_id"];
          },
        ];
      };
      system_config: {
        Row: {
          description: string;
          key: string;
          maximum: number | null;
          minimum: number | null;
          type: string;
          unit: string;
          updated_at: string;
          value: NonNullable<Json>;
        };
        ComputedFields: never;
        Insert: {
          description: string;
          key: string;
          maximum?: number | null;
          minimum?: number | null;
          type: string;
          unit: string;
          updated_at?: string;
          value: NonNullable<Json>;
        };
        Update: {
          description?: string;
          key?: string;
          maximum?: number | null;
          minimum?: number | null;
          type?: string;
          unit?: string;
          updated_at?: string;
          value?: NonNullable<Json>;
        };
        Relationships: [];
      };
      trade_events: {
        Row: {
          account_id: string;
          code: string | null;
          deal_price: number | null;
          dealt_at: string | null;
          detect_ms: number | null;
          detected_at: string | null;
          error: string | null;
          event_key: string | null;
          id: number;
          kind: string | null;
          lock_ms: number | null;
          locked_at: string | null;
          lots: number | null;
          payload: Json | null;
          previous_lots: number | null;
          received_at: string;
          request_ms: number | null;
          requested_at: string;
          seq: number | null;
          session: number | null;
          side: string | null;
          source: string;
          status: string;
          symbol: string | null;
          ticket: string | null;
          type: string;
          unchanged_at: string | null;
          user_id: string;
        };
        ComputedFields: never;
        Insert: {
          account_id: string;
          code?: string | null;
          deal_price?: number | null;
          dealt_at?: string | null;
          detect_ms?: never;
          detected_at?: string | null;
          error?: string | null;
          event_key?: string | null;
          id?: never;
          kind?: string | null;
          lock_ms?: never;
          locked_at?: string | null;
          lots?: number | null;
          payload?: Json | null;
          previous_lots?: number | null;
          received_at?: string;
          request_ms?: never;
          requested_at?: string;
          seq?: number | null;
          session?: number | null;
          side?: string | null;
          source?: string;
          status: string;
          symbol?: string | null;
          ticket?: string | null;
          type: string;
          unchanged_at?: string | null;
          user_id: string;
        };
        Update: {
          account_id?: string;
          code?: string | null;
          deal_price?: number | null;
          dealt_at?: string | null;
          detect_ms?: never;
          detected_at?: string | null;
          error?: string | null;
          event_key?: string | null;
          id?: never;
          kind?: string | null;
          lock_ms?: never;
          locked_at?: string | null;
          lots?: number | null;
          payload?: Json | null;
          previous_lots?: number | null;
          received_at?: string;
          request_ms?: never;
          requested_at?: string;
          seq?: number | null;
          session?: number | null;
          side?: string | null;
          source?: string;
          status?: string;
          symbol?: string | null;
          ticket?: string | null;
          type?: string;
          unchanged_at?: string | null;
          user_id?: string;
        };
        Relationships: [];
      };
      trade_execution_queue: {
        Row: {
          account_id: string;
          action: string;
          adopted: boolean;
          after_id: number | null;
          attempt: number;
          cancel_requested_at: string | null;
          comment: string;
          copier_id: string | null;
          detected_at: string | null;
          done_at: string | null;
          epoch: number | null;
          event_id: number | null;
          expires_at: string | null;
          fill_price: number | null;
          filled_lots: number | null;
          finalized_at: string | null;
          id: number;
          in_flight: boolean;
          lane: string;
          link_id: number | null;
          lots: number;
          master_account_id: string | null;
          master_lots: number | null;
          master_price: number | null;
          max_slippage_points: number | null;
          message: string | null;
          next_attempt_at: string | null;
          offered_at: string | null;
          order_type: string;
          parts: Json | null;
          planned_at: string | null;
          point_money: number | null;
          point_size: number | null;
          price: number | null;
          priority: number;
          queued_at: string;
          reason: string | null;
          received_at: string | null;
          retry_until: string | null;
          send_before: string;
          sent_at: string | null;
          side: string;
          sl: number | null;
          spread: number | null;
          status: string;
          step_id: number;
          symbol: string;
          target_lots: number | null;
          ticket: string | null;
          tp: number | null;
          updated_at: string;
          user_id: string;
          vps_id: string | null;
          warnings: string[];
        };
        ComputedFields: never;
        Insert: {
          account_id: string;
          action: string;
          adopted?: boolean;
          after_id?: number | null;
          attempt?: number;
          cancel_requested_at?: string | null;
          comment?: string;
          copier_id?: string | null;
          detected_at?: string | null;
          done_at?: string | null;
          epoch?: number | null;
          event_id?: number | null;
          expires_at?: string | null;
          fill_price?: number | null;
          filled_lots?: number | null;
          finalized_at?: string | null;
          id?: never;
          in_flight?: never;
          lane: string;
          link_id?: number | null;
          lots: number;
          master_account_id?: string | null;
          master_lots?: number | null;
          master_price?: number | null;
          max_slippage_points?: number | null;
          message?: string | null;
          next_attempt_at?: string | null;
          offered_at?: string | null;
          order_type?: string;
          parts?: Json | null;
          planned_at?: string | null;
          point_money?: number | null;
          point_size?: number | null;
          price?: number | null;
          priority: number;
          queued_at: string;
          reason?: string | null;
          received_at?: string | null;
          retry_until?: string | null;
          send_before: string;
          sent_at?: string | null;
          side: string;
          sl?: number | null;
          spread?: number | null;
          status?: string;
          step_id: number;
          symbol: string;
          target_lots?: number | null;
          ticket?: string | null;
          tp?: number | null;
          updated_at: string;
          user_id: string;
          vps_id?: string | null;
          warnings?: string[];
        };
        Update: {
          account_id?: string;
          action?: string;
          adopted?: boolean;
          after_id?: number | null;
          attempt?: number;
          cancel_requested_at?: string | null;
          comment?: string;
          copier_id?: string | null;
          detected_at?: string | null;
          done_at?: string | null;
          epoch?: number | null;
          event_id?: number | null;
          expires_at?: string | null;
          fill_price?: number | null;
          filled_lots?: number | null;
          finalized_at?: string | null;
          id?: never;
          in_flight?: never;
          lane?: string;
          link_id?: number | null;
          lots?: number;
          master_account_id?: string | null;
          master_lots?: number | null;
          master_price?: number | null;
          max_slippage_points?: number | null;
          message?: string | null;
          next_attempt_at?: string | null;
          offered_at?: string | null;
          order_type?: string;
          parts?: Json | null;
          planned_at?: string | null;
          point_money?: number | null;
          point_size?: number | null;
          price?: number | null;
          priority?: number;
          queued_at?: string;
          reason?: string | null;
          received_at?: string | null;
          retry_until?: string | null;
          send_before?: string;
          sent_at?: string | null;
          side?: string;
          sl?: number | null;
          spread?: number | null;
          status?: string;
          step_id?: number;
          symbol?: string;
          target_lots?: number | null;
          ticket?: string | null;
          tp?: number | null;
          updated_at?: string;
          user_id?: string;
          vps_id?: string | null;
          warnings?: string[];
        };
        Relationships: [];
      };
      trading_accounts: {
        Row: {
          balance: number | null;
          claim: string;
          copy_state: string;
          copy_state_reason: string | null;
          created_at: string;
          currency: string;
          equity: number | null;
          flat_from: string | null;
          flat_snapshots: number;
          flat_until: string | null;
          flatten_manual: boolean;
          flatten_then: string;
          flattened_at: string | null;
          free_margin: number | null;
          funds_at: string | null;
          guarded: boolean;
          has_unread: boolean;
          id: string;
          initial_balance: number | null;
          initial_balance_at: string | null;
          initial_moved: number;
          leverage: number | null;
          login: string;
          login_key: string;
          margin: number | null;
          mode: string;
          name: string;
          password_is_new: boolean;
          platform: string;
          proven_at: string | null;
          quiet_levels_wait: boolean;
          quiet_minutes_after: number;
          quiet_minutes_before: number;
          quiet_own_windows: boolean;
          removed_at: string | null;
          resumes_at: string | null;
          revision: number;
          secret_id: string | null;
          seen_at: string | null;
          server: string;
          server_key: string;
          session: number;
          session_opened_at: string | null;
          session_vps_id: string | null;
          settings: NonNullable<Json>;
          snapshot_session: number;
          status: string;
          status_at: string;
          status_reason: string | null;
          symbol_affix_proven: boolean;
          symbol_prefix: string;
          symbol_suffix: string;
          symbols_complete: boolean | null;
          updated_at: string;
          user_id: string;
        };
        ComputedFields: never;
        Insert: {
          balance?: number | null;
          claim?: string;
          copy_state?: string;
          copy_state_reason?: string | null;
          created_at?: string;
          currency?: string;
          equity?: number | null;
          flat_from?: string | null;
          flat_snapshots?: number;
          flat_until?: string | null;
          flatten_manual?: boolean;
          flatten_then?: string;
          flattened_at?: string | null;
          free_margin?: number | null;
          funds_at?: string | null;
          guarded?: boolean;
          has_unread?: boolean;
          id?: string;
          initial_balance?: number | null;
          initial_balance_at?: string | null;
          initial_moved?: number;
          leverage?: number | null;
          login: string;
          login_key?: never;
          margin?: number | null;
          mode?: string;
          name: string;
          password_is_new?: boolean;
          platform: string;
          proven_at?: string | null;
          quiet_levels_wait?: boolean;
          quiet_minutes_after?: number;
          quiet_minutes_before?: number;
          quiet_own_windows?: boolean;
          removed_at?: string | null;
          resumes_at?: string | null;
          revision?: number;
          secret_id?: string | null;
          seen_at?: string | null;
          server: string;
          server_key?: never;
          session?: number;
          session_opened_at?: string | null;
          session_vps_id?: string | null;
          settings?: NonNullable<Json>;
          snapshot_session?: number;
          status?: string;
          status_at?: string;
          status_reason?: string | null;
          symbol_affix_proven?: boolean;
          symbol_prefix?: string;
          symbol_suffix?: string;
          symbols_complete?: boolean | null;
          updated_at?: string;
          user_id: string;
        };
        Update: {
          balance?: number | null;
          claim?: string;
          copy_state?: string;
          copy_state_reason?: string | null;
          created_at?: string;
          currency?: string;
          equity?: number | null;
          flat_from?: string | null;
          flat_snapshots?: number;
          flat_until?: string | null;
          flatten_manual?: boolean;
          flatten_then?: string;
          flattened_at?: string | null;
          free_margin?: number | null;
          funds_at?: string | null;
          guarded?: boolean;
          has_unread?: boolean;
          id?: string;
          initial_balance?: number | null;
          initial_balance_at?: string | null;
          initial_moved?: number;
          leverage?: number | null;
          login?: string;
          login_key?: never;
          margin?: number | null;
          mode?: string;
          name?: string;
          password_is_new?: boolean;
          platform?: string;
          proven_at?: string | null;
          quiet_levels_wait?: boolean;
          quiet_minutes_after?: number;
          quiet_minutes_before?: number;
          quiet_own_windows?: boolean;
          removed_at?: string | null;
          resumes_at?: string | null;
          revision?: number;
          secret_id?: string | null;
          seen_at?: string | null;
          server?: string;
          server_key?: never;
          session?: number;
          session_opened_at?: string | null;
          session_vps_id?: string | null;
          settings?: NonNullable<Json>;
          snapshot_session?: number;
          status?: string;
          status_at?: string;
          status_reason?: string | null;
          symbol_affix_proven?: boolean;
          symbol_prefix?: string;
          symbol_suffix?: string;
          symbols_complete?: boolean | null;
          updated_at?: string;
          user_id?: string;
        };
        Relationships: [
          {
            foreignKeyName: "trading_accounts_session_vps_id_fkey";
            columns: ["session_vps_id"];
            isOneToOne: false;
            referencedRelation: "vps_instances";
            referencedColumns: ["id"];
          },
        ];
      };
      trading_switch: {
        Row: {
          changed_at: string;
          one: boolean;
          reason: string;
          settled: boolean;
          state: string;
        };
        ComputedFields: never;
        Insert: {
          changed_at?: string;
          one?: boolean;
          reason?: string;
          settled?: boolean;
          state?: string;
        };
        Update: {
          changed_at?: string;
          one?: boolean;
          reason?: string;
          settled?: boolean;
          state?: string;
        };
        Relationships: [];
      };
      user_preferences: {
        Row: {
          theme: string;
          time_zone: string | null;
          tour: string;
          updated_at: string;
          user_id: string;
        };
        ComputedFields: never;
        Insert: {
          theme?: string;
          time_zone?: string | null;
          tour?: string;
          updated_at?: string;
          user_id: string;
        };
        Update: {
          theme?: string;
          time_zone?: string | null;
          tour?: string;
          updated_at?: string;
          user_id?: string;
        };
        Relationships: [];
      };
      vps_instances: {
        Row: {
          agent_version: string | null;
          answer_id: number;
          capacity: number;
          clock_offset_ms: number | null;
          cpu_percent: number | null;
          created_at: string;
          disk_percent: number | null;
          id: string;
          last_heartbeat_at: string | null;
          last_tick_at: string | null;
          lease_expires_at: string;
          memory_percent: number | null;
          name: string;
          platforms: string[];
          process: string | null;
          process_beat: number | null;
          process_begins_at: string | null;
          process_machine: string | null;
          process_since: string | null;
          process_worked: boolean;
          region: string;
          retired_at: string | null;
          rss_mb: number | null;
          rtt_ms: number | null;
          status: string;
          unfit: string | null;
          unfit_since: string | null;
          unfit_works: boolean;
          user_id: string | null;
          worked_at: string;
        };
        ComputedFields: never;
        Insert: {
          agent_version?: string | null;
          answer_id?: number;
          capacity?: number;
          clock_offset_ms?: number | null;
          cpu_percent?: number | null;
          created_at?: string;
          disk_percent?: number | null;
          id?: string;
          last_heartbeat_at?: string | null;
          last_tick_at?: string | null;
          lease_expires_at?: string;
          memory_percent?: number | null;
          name: string;
          platforms: string[];
          process?: string | null;
          process_beat?: number | null;
          process_begins_at?: string | null;
          process_machine?: string | null;
          process_since?: string | null;
          process_worked?: boolean;
          region?: string;
          retired_at?: string | null;
          rss_mb?: number | null;
          rtt_ms?: number | null;
          status?: string;
          unfit?: string | null;
          unfit_since?: string | null;
          unfit_works?: boolean;
          user_id?: string | null;
          worked_at?: string;
        };
        Update: {
          agent_version?: string | null;
          answer_id?: number;
          capacity?: number;
          clock_offset_ms?: number | null;
          cpu_percent?: number | null;
          created_at?: string;
          disk_percent?: number | null;
          id?: string;
          last_heartbeat_at?: string | null;
          last_tick_at?: string | null;
          lease_expires_at?: string;
          memory_percent?: number | null;
          name?: string;
          platforms?: string[];
          process?: string | null;
          process_beat?: number | null;
          process_begins_at?: string | null;
          process_machine?: string | null;
          process_since?: string | null;
          process_worked?: boolean;
          region?: string;
          retired_at?: string | null;
          rss_mb?: number | null;
          rtt_ms?: number | null;
          status?: string;
          unfit?: string | null;
          unfit_since?: string | null;
          unfit_works?: boolean;
          user_id?: string | null;
          worked_at?: string;
        };
        Relationships: [];
      };
    };
    Views: {
      account_status: {
        Row: {
          account_id: string;
          name: string;
          platform: string;
          reason: string | null;
          seen_at: string | null;
          since: string | null;
          status: string | null;
          user_id: string;
          waits_for: string | null;
        };
        ComputedFields: never;
        Relationships: [];
      };
      copied_trades: {
        Row: {
          attempts: number | null;
          broker_ms: number | null;
          closed_lots: number | null;
          copier: string | null;
          copier_id: string;
          currency: string | null;
          decided_at: string;
          deliver_ms: number | null;
          detail: string | null;
          detect_ms: number | null;
          event: string | null;
          event_id: number;
          fill_price: number | null;
          filled_lots: number | null;
          follower_account_id: string | null;
          lane_ms: number | null;
          link_id: number | null;
          lock_ms: number | null;
          master_account_id: string | null;
          master_lots: number | null;
          master_previous_lots: number | null;
          master_price: number | null;
          master_side: string | null;
          master_symbol: string | null;
          master_ticket: string | null;
          message: string | null;
          orders: number | null;
          ours_ms: number | null;
          plan_ms: number | null;
          reason: string | null;
          reason_words: string | null;
          request_ms: number | null;
          side: string | null;
          slippage_money: number | null;
          slippage_points: number | null;
          status: string | null;
          symbol: string | null;
          user_id: string;
          warnings: string[] | null;
          whole_ms: number | null;
        };
        ComputedFields: never;
        Relationships: [
          {
            foreignKeyName: "copiers_follower_account_id_fkey";
            columns: ["follower_account_id"];
            isOneToOne: false;
            referencedRelation: "account_status";
            referencedColumns: ["account_id"];
          },
          {
            foreignKeyName: "copiers_follower_account_id_fkey";
            columns: ["follower_account_id"];
            isOneToOne: false;
            referencedRelation: "trading_accounts";
            referencedColumns: ["id"];
          },
          {
            foreignKeyName: "copiers_master_account_id_fkey";
            columns: ["master_account_id"];
            isOneToOne: false;
            referencedRelation: "account_status";
            referencedColumns: ["account_id"];
          },
          {
            foreignKeyName: "copiers_master_account_id_fkey";
            columns: ["master_account_id"];
            isOneToOne: false;
            referencedRelation: "trading_accounts";
            referencedColumns: ["id"];
          },
        ];
      };
      execution_latencies: {
        Row: {
          account_id: string;
          broker_ms: number | null;
          deliver_ms: number | null;
          detect_ms: number | null;
          event_id: number | null;
          id: number;
          lane_ms: number | null;
          lock_ms: number | null;
          measured: boolean | null;
          ours_ms: number | null;
          plan_ms: number | null;
          queued_at: string;
          request_ms: number | null;
          user_id: string;
          whole_ms: number | null;
        };
        ComputedFields: never;
        Relationships: [];
      };
      unexplained_pairs: {
        Row: {
          account_id: string;
          copier_id: string;
          event_id: number;
          follower_account_id: string;
          received_at: string;
          ticket: string | null;
          type: string;
        };
        ComputedFields: never;
        Relationships: [
          {
            foreignKeyName: "copiers_follower_account_id_fkey";
            columns: ["follower_account_id"];
            isOneToOne: false;
            referencedRelation: "account_status";
            referencedColumns: ["account_id"];
          },
          {
            foreignKeyName: "copiers_follower_account_id_fkey";
            columns: ["follower_account_id"];
            isOneToOne: false;
            referencedRelation: "trading_accounts";
            referencedColumns: ["id"];
          },
        ];
      };
    };
    Functions: {
      account_credentials: { Args: { p_request: Json }; Returns: Json };
      agent_session: { Args: { p_request: Json }; Returns: Json };
      assign_account: { Args: { p_request: Json }; Returns: Json };
      check_enrollment: { Args: { p_request: Json }; Returns: Json };
      connect_account: { Args: { p_account: Json }; Returns: Json };
      copier_drift: { Args: { p_request: Json }; Returns: Json };
      copy_figures: { Args: { p_request: Json }; Returns: Json };
      create_enrollment_token: { Args: { p_request: Json }; Returns: Json };
      drain_vps: { Args: { p_request: Json }; Returns: Json };
      enroll_vps: { Args: { p_request: Json }; Returns: Json };
      equity_curve: { Args: { p_request: Json }; Returns: Json };
      flatten_account: { Args: { p_request: Json }; Returns: Json };
      grant_operator: { Args: { p_email: string; p_user_id?: string }; Returns: Json };
      import_quiet_windows: { Args: { p_request: Json }; Returns: Json };
      list_broker_servers: { Args: { p_request: Json }; Returns: Json };
      maintain: { Args: Record<PropertyKey, never>; Returns: Json };
      mark_alert_seen: { Args: { p_request: Json }; Returns: Json };
      mark_alerts_seen: { Args: { p_request: Json }; Returns: Json };
      my_session: { Args: { p_request: Json }; Returns: Json };
      note_restored: { Args: { p_request: Json }; Returns: Json };
      open_session: { Args: { p_request: Json }; Returns: Json };
      operator_candidate: { Args: { p_email: string }; Returns: Json };
      pause_account: { Args: { p_request: Json }; Returns: Json };
      preview_copy: { Args: { p_request: Json }; Returns: Json };
      protection_room: { Args: { p_request: Json }; Returns: Json };
      queue_trade_copy: { Args: { p_events: Json }; Returns: Json };
      remove_account: { Args: { p_request: Json }; Returns: Json };
      remove_broker_server: { Args: { p_request: Json }; Returns: Json };
      remove_copier: { Args: { p_request: Json }; Returns: Json };
      remove_flat_by: { Args: { p_request: Json }; Returns: Json };
      remove_protection_rule: { Args: { p_request: Json }; Returns: Json };
      remove_quiet_windows: { Args: { p_request: Json }; Returns: Json };
      report_account_state: { Args: { p_state: Json }; Returns: Json };
      report_executions: { Args: { p_reports: Json }; Returns: Json };
      request_server: { Args: { p_request: Json }; Returns: Json };
      reset_protection: { Args: { p_request: Json }; Returns: Json };
      resync_copier: { Args: { p_request: Json }; Returns: Json };
      retire_vps: { Args: { p_request: Json }; Returns: Json };
      save_broker_server: { Args: { p_request: Json }; Returns: Json };
      save_copier: { Args: { p_copier: Json }; Returns: Json };
      save_protection_rule: { Args: { p_rule: Json }; Returns: Json };
      save_quiet_windows: { Args: { p_request: Json }; Returns: Json };
      search_servers: { Args: { p_request: Json }; Returns: Json };
      set_copier_mode: { Args: { p_request: Json }; Returns: Json };
      set_currency_unit: { Args: { p_request: Json }; Returns: Json };
      set_flat_by: { Args: { p_request: Json }; Returns: Json };
      set_preferences: { Args: { p_request: Json }; Returns: Json };
      set_quiet_times: { Args: { p_request: Json }; Returns: Json };
      set_setting: { Args: { p_request: Json }; Returns: Json };
      set_symbol_alias: { Args: { p_request: Json }; Returns: Json };
      set_trading: { Args: { p_request: Json }; Returns: Json };
      symbol_suggestions: { Args: { p_request: Json }; Returns: Json };
      update_account: { Args: { p_request: Json }; Returns: Json };
      verdict: { Args: { p_request: Json }; Returns: Json };
      vps_heartbeat: { Args: { p_heartbeat: Json }; Returns: Json };
    };
    Enums: {
      [_ in never]: never;
    };
    CompositeTypes: {
      [_ in never]: never;
    };
  };
};

type DatabaseWithoutInternals = Omit<Database, "__InternalSupabase">;

type DefaultSchema = DatabaseWithoutInternals[Extract<keyof Database, "public">];

export type Tables<
  DefaultSchemaTableNameOrOptions extends
    | keyof (DefaultSchema["Tables"] & DefaultSchema["Views"])
    | { schema: keyof DatabaseWithoutInternals },
  TableName extends DefaultSchemaTableNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals;
  }
    ? keyof (DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"] &
        DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Views"])
    : never = never,
> = DefaultSchemaTableNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? (DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"] &
      DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Views"])[TableName] extends {
      Row: infer R;
    }
    ? R
    : never
  : DefaultSchemaTableNameOrOptions extends keyof (DefaultSchema["Tables"] & DefaultSchema["Views"])
    ? (DefaultSchema["Tables"] & DefaultSchema["Views"])[DefaultSchemaTableNameOrOptions] extends {
        Row: infer R;
      }
      ? R
      : never
    : never;

export type TablesInsert<
  DefaultSchemaTableNameOrOptions extends keyof DefaultSchema["Tables"] | { schema: keyof DatabaseWithoutInternals },
  TableName extends DefaultSchemaTableNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals;
  }
    ? keyof DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"]
    : never = never,
> = DefaultSchemaTableNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"][TableName] extends {
      Insert: infer I;
    }
    ? I
    : never
  : DefaultSchemaTableNameOrOptions extends keyof DefaultSchema["Tables"]
    ? DefaultSchema["Tables"][DefaultSchemaTableNameOrOptions] extends {
        Insert: infer I;
      }
      ? I
      : never
    : never;

export type TablesUpdate<
  DefaultSchemaTableNameOrOptions extends keyof DefaultSchema["Tables"] | { schema: keyof DatabaseWithoutInternals },
  TableName extends DefaultSchemaTableNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals;
  }
    ? keyof DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"]
    : never = never,
> = DefaultSchemaTableNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"][TableName] extends {
      Update: infer U;
    }
    ? U
    : never
  : DefaultSchemaTableNameOrOptions extends keyof DefaultSchema["Tables"]
    ? DefaultSchema["Tables"][DefaultSchemaTableNameOrOptions] extends {
        Update: infer U;
      }
      ? U
      : never
    : never;

export type Enums<
  DefaultSchemaEnumNameOrOptions extends keyof DefaultSchema["Enums"] | { schema: keyof DatabaseWithoutInternals },
  EnumName extends DefaultSchemaEnumNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals;
  }
    ? keyof DatabaseWithoutInternals[DefaultSchemaEnumNameOrOptions["schema"]]["Enums"]
    : never = never,
> = DefaultSchemaEnumNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[DefaultSchemaEnumNameOrOptions["schema"]]["Enums"][EnumName]
  : DefaultSchemaEnumNameOrOptions extends keyof DefaultSchema["Enums"]
    ? DefaultSchema["Enums"][DefaultSchemaEnumNameOrOptions]
    : never;

export type CompositeTypes<
  PublicCompositeTypeNameOrOptions extends
    | keyof DefaultSchema["CompositeTypes"]
    | { schema: keyof DatabaseWithoutInternals },
  CompositeTypeName extends PublicCompositeTypeNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals;
  }
    ? keyof DatabaseWithoutInternals[PublicCompositeTypeNameOrOptions["schema"]]["CompositeTypes"]
    : never = never,
> = PublicCompositeTypeNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[PublicCompositeTypeNameOrOptions["schema"]]["CompositeTypes"][CompositeTypeName]
  : PublicCompositeTypeNameOrOptions extends keyof DefaultSchema["CompositeTypes"]
    ? DefaultSchema["CompositeTypes"][PublicCompositeTypeNameOrOptions]
    : never;

export const Constants = {
  public: {
    Enums: {},
  },
} as const;
