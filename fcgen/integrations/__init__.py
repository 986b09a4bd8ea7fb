"""fcgen in other libraries' places for an attention of one's choice. Nothing is registered before its `register()` is called."""
