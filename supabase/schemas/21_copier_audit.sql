-- What users change about their copiers stands in audit_log.

create trigger audited after insert or update or delete on public.copiers for each row
  execute function private.audit('id', 'user_id', 'name', 'master_account_id', 'follower_account_id', 'mode', 'sizing_mode',
    'sizing_value', 'contract_alignment', 'min_policy', 'max_risk_coefficient', 'max_policy', 'max_lots', 'max_risk_percent',
    'max_leverage', 'max_leverage_policy', 'sanity_factor', 'reverse', 'sl_mode', 'tp_mode', 'sl_points', 'tp_points', 'max_sl_points', 'copy_pending', 'pending_grace_ms', 'early_fill_policy', 'max_age_ms',
    'retry_window_s', 'max_slippage_points', 'comment', 'removal', 'removed_at');
create trigger audited after insert or update or delete on public.symbol_mappings for each row
  execute function private.audit('id', 'user_id', 'copier_id', 'master_symbol', 'follower_symbol');
