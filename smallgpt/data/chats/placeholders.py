"""What apps write in place of what is no text: pictures, recalled messages, calls, notices."""

import re

from smallgpt.data.chats.messages import SYSTEM, Message

_NOTICE = "messages of the app"
_RECALLED = "recalled or deleted messages"
_MEDIA = "pictures, voice messages, files and the like"
_LINK = "messages of links only"
_EMOJI = "emoji that stand as words in brackets"
_EMPTY = "empty messages"

_WITH_TEXT = (
    "图片|照片|相片|圖片|闪照|语音|语音消息|視訊|视频|小视频|短视频|表情|表情包|动画表情|动态表情"
    "|自定义表情|贴纸|贴图|貼圖|photo|image|picture|video|voice|voice message|audio|sticker|gif"
)
"""In brackets, these stand beside text or in its place."""
_ALONE = (
    "文件|文件传输|链接|卡片|卡片消息|名片|个人名片|位置|位置共享|实时位置|地理位置|红包|微信红包"
    "|QQ红包|转账|微信转账|语音通话|视频通话|通话|音乐|音乐分享|分享|小程序|聊天记录|合并转发|转发"
    "|拍一拍|戳一戳|窗口抖动|视频号|接龙|file|link|location|contact|call|poll|animation"
)
"""In brackets at the beginning, these are the whole message."""
_OMITTED = (
    "图像|图片|圖片|照片|视频|影片|音频|音訊|语音|語音|贴图|貼圖|动图|GIF|文档|文件|檔案|联系人名片"
)
_AFTER_WORD = r"(?:[\s:：\d][^\[\]]*)?\]"
_BESIDE_TEXT = re.compile(
    rf"\[(?:{_WITH_TEXT}){_AFTER_WORD}(?:\s*\d+\s?(?:秒|[″\"s]))?"
    r"|<(?:Media omitted|(?:已?省略|忽略)[^<>]{1,12}|[^<>]{1,8}已省略)>"
    r"|<(?:attached|已?附加|附件)\s?[:：][^<>]*>"
    rf"|^(?:{_OMITTED})\s?已(?:省略|略去|忽略)$"
    r"|^(?:\S.* )?(?:image|video|audio|sticker|GIF|document|contact card|voice message) omitted$"
    r"|^\S.*\.\w{2,4} \((?:file attached|文件附件|檔案已附加)\)$",
    re.IGNORECASE | re.MULTILINE,
)
_ALL_OF_IT = re.compile(
    rf"\[(?:{_ALONE}){_AFTER_WORD}.*|<\?xml.*|<msg>.*|(?:语音|视频)?通话时长\s?[\d:：]+"
    r"|对方(?:已取消|已拒绝|无应答|忙线中|正忙)|已在其[他它]设备接听|live location shared"
    r"|(?:(?:live )?location|(?:实时|即時)?位置|定位)\s?[:：]\s*(?:https?://\S+|-?\d+\.\d+\s?[,，].*)",
    re.IGNORECASE | re.DOTALL,
)
# There are hundreds of names, and new ones each year: they are known by their length.
_EMOJI_NAME = re.compile(r"\[(?:[\u4e00-\u9fff]{1,4}|[A-Z][A-Za-z]{1,9}|666|doge|emm|打call)\]")
_RECALL = re.compile(
    r"[^\n]{0,40}?(?:撤回了?一条(?:成员)?消息|收回了?(?:一則)?訊息)(?:\s*重新编辑)?[。.]?"
    r"|[您你]?已?(?:撤回|删除|刪除)了?(?:此|这条|這則)(?:消息|訊息)[。.]?"
    r"|(?:此|这条|该|這則)(?:消息|訊息)已被?(?:撤回|删除|刪除)[。.]?"
    r"|(?:this message was deleted|you deleted this message|[^\n]{0,40} recalled a message)\.?"
    r"|\[撤回(?:消息)?\]",
    re.IGNORECASE,
)
_APP_SAYS = re.compile(
    r"(?:messages and calls are end-to-end encrypted|消息和通话已进行端到端加密"
    r"|訊息與通話已受端對端加密|missed (?:voice|video) call|未接(?:语音|视频|語音|視訊)通话"
    r"|waiting for this message).*"
    r"|(?:我|你|[\"“].+[\"”])\s?拍了拍\s?(?:我|你|自己|[\"“]).*"
    r"|(?:以上是打招呼的(?:内容|消息)[。.]?|你已添加了.*现在可以开始聊天了。?|你和.*个共同好友.*|我通过了你的朋友验证请求.*)",
    re.IGNORECASE | re.DOTALL,
)
_ONLY_LINKS = re.compile(r"(?:(?:https?://|www\.)\S+\s*)+", re.IGNORECASE)
_QUOTED_OR_EDITED = re.compile(
    r"\A「.*?」\s*\n(?:[-—] ?){5,}\n|\n引用[:：].*\Z"
    r"|\s?[<‹](?:此(?:消息|訊息)已被?(?:编辑|編輯)|this message was edited)[>›]\s*\Z",
    re.DOTALL | re.IGNORECASE,
)
_TEXT_KIND = re.compile(r"[01]?|.*(?:文本|文字|引用|text|quote|reply|message).*", re.DOTALL)
_MEDIA_KIND = re.compile(rf".*(?:{_WITH_TEXT}|{_ALONE}|emoji).*", re.IGNORECASE | re.DOTALL)


def without_placeholders(message: Message) -> tuple[str, str]:
    """What of a message is text, in one line; and what was dropped of it, or all of it, by kind."""
    text, kind = message.text, message.kind
    if message.sender == SYSTEM:
        return "", _RECALLED if _RECALL.fullmatch(text) or "撤回" in text else _NOTICE
    if not _TEXT_KIND.fullmatch(kind) and _MEDIA_KIND.fullmatch(kind):
        return "", _MEDIA
    dropped, lines = "", []
    for line in _QUOTED_OR_EDITED.sub("", text).split("\n"):
        if _RECALL.fullmatch(line.strip()):
            dropped = _RECALLED
        elif _APP_SAYS.fullmatch(line.strip()):
            dropped = _NOTICE
        else:
            lines.append(line)
    text = "\n".join(lines).strip()
    if _ALL_OF_IT.fullmatch(text):
        return "", _MEDIA
    text, placeholders = _BESIDE_TEXT.subn(" ", text)
    text, emoji = _EMOJI_NAME.subn(" ", text)
    text = " ".join(text.split())
    if _ONLY_LINKS.fullmatch(text):
        return "", _LINK
    beside = _MEDIA if placeholders else _EMOJI if emoji else ""
    return text, dropped or beside or ("" if text else _EMPTY)
